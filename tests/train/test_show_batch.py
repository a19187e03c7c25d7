"""The batches on the page are those of the run; padding and regions to ignore are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from runtime.coco import CocoDataset, load_coco
from runtime.draw import class_color
from runtime.errors import UserError
from train.batch_sheet import HEADING, LONGEST_SIDE, content_hw, draw_batch, encode_pages
from train.build import build_training_batches
from train.config import Config
from train.data.loader import TrainBatch
from train.loss.criterion import Targets
from train.show_batch import batches_of_run, parse
from train.trainer.loop import train_detector

Make = Callable[..., Config]


@pytest.mark.parametrize("crop", [(64, 64), (0, 0)])
@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_batch_k_of_the_page_is_batch_k_of_the_training(
    mosaic: float, crop: tuple[int, int], small_config: Make, tmp_path: Path
) -> None:
    config = small_config(epochs=0.5, batch=4)
    config = replace(config, augment=replace(config.augment, crop=crop, mosaic=mosaic))
    fed: list[TrainBatch] = []

    def recording(
        dataset: CocoDataset, settings: Config, first_step: int, share: int, rank: int
    ) -> Iterator[TrainBatch]:
        for batch in build_training_batches(dataset, settings, first_step, share, rank):
            fed.append(batch)
            yield batch

    steps = train_detector(config, tmp_path, make_batches=recording).steps
    dataset = load_coco(config.data.train_json, config.data.train_images)
    for first in (0, 1):
        shown = list(batches_of_run(config, dataset, first))
        assert len(shown) == steps - first > 0
        for mine, theirs in zip(shown, fed[first:], strict=True):
            assert torch.equal(mine.images, theirs.images)
            assert mine.image_ids == theirs.image_ids
            assert mine.mosaic_ids == theirs.mosaic_ids
            assert all(map(torch.equal, mine.targets, theirs.targets))
    with pytest.raises(UserError, match=f"--first-step {steps}, but the run has {steps} steps"):
        batches_of_run(config, dataset, steps)
    ends = round(0.8 * steps) if mosaic else 0
    assert [bool(batch.mosaic_ids) for batch in fed] == [step < ends for step in range(steps)]


def batch_of(images: np.ndarray, regions: list[list[float]] | None = None) -> TrainBatch:
    count = len(images)
    targets = Targets(torch.zeros(count, 1, 4), torch.zeros(count, 1, dtype=torch.long), torch.zeros(count, 1).bool())
    shown = None if regions is None else torch.tensor(regions).unsqueeze(1)
    return TrainBatch(torch.from_numpy(images), targets, list(range(count)), [], shown)


def test_repeated_images_count_as_in_the_training(small_config: Make, tmp_path: Path) -> None:
    """They make an epoch longer, and with it the part of the run that has mosaics."""
    config = small_config(epochs=0.5, batch=4)
    augment = replace(config.augment, mosaic=0.9, mosaic_until=0.5)
    config = replace(config, augment=augment, data=replace(config.data, repeat_threshold=1.0))
    fed: list[TrainBatch] = []

    def recording(*settings: Any) -> Iterator[TrainBatch]:
        for batch in build_training_batches(*settings):
            fed.append(batch)
            yield batch

    train_detector(config, tmp_path, make_batches=recording)
    dataset = load_coco(config.data.train_json, config.data.train_images)
    shown = list(batches_of_run(config, dataset, 0))
    assert len(shown) == len(fed) > 0.5 * len(dataset) / 4
    assert [batch.mosaic_ids for batch in shown] == [batch.mosaic_ids for batch in fed]
    assert all(torch.equal(mine.images, theirs.images) for mine, theirs in zip(shown, fed, strict=True))


def test_padding_and_ignored_regions_are_hatched_and_the_rest_is_the_input() -> None:
    images = np.full((1, 64, 96, 3), 7, np.uint8)
    images[0, :40, :50] = 200
    assert content_hw(images[0], (7, 7, 7)) == (40, 50)
    assert content_hw(images[0], (9, 9, 9)) == (64, 96)
    assert content_hw(np.full((4, 4, 3), 7, np.uint8), (7, 7, 7)) == (0, 0)
    page = draw_batch(batch_of(images, [[10, 20, 30, 40]]), 3, ["a"], (7, 7, 7))
    image = page[2 * HEADING + 6 : 2 * HEADING + 6 + 64, 6 : 6 + 96]
    changed = (image != images[0]).any(axis=2)
    assert changed[20:40, 10:30].mean() == pytest.approx(0.25, abs=0.02), "two of eight diagonals"
    assert changed[40:].mean() == pytest.approx(0.25, abs=0.02)
    assert changed[:, 50:].mean() == pytest.approx(0.25, abs=0.02)
    changed[20:40, 10:30] = False
    assert not changed[:40, :50].any()


def test_boxes_are_drawn_where_the_network_is_told_they_are() -> None:
    images = np.full((2, 640, 960, 3), 200, np.uint8)
    plain = batch_of(images)
    boxes, mask = plain.targets.boxes.clone(), plain.targets.mask.clone()
    boxes[1, 0], mask[1, 0] = torch.tensor([400.0, 300, 800, 600]), True
    page = draw_batch(plain._replace(targets=Targets(boxes, plain.targets.labels, mask)), 0, ["a"], (0, 0, 0))
    changed = (page != draw_batch(plain, 0, ["a"], (0, 0, 0))).any(axis=2)
    rows, columns = np.flatnonzero(changed[2 * HEADING :].any(axis=1)), np.flatnonzero(changed[60:].any(axis=0))
    left, top = 6 + 480 + 6 + 200, 6 + 150  # the second cell, at half the size
    assert (columns[0], columns[-1]) == (left, left + 199)
    assert rows[-1] == top + 149


def test_pages_below_each_other_are_on_one_sheet_unless_it_is_too_large() -> None:
    pages = [np.full((20, 30, 3), (250, 0, 0), np.uint8), np.full((10, 50, 3), (0, 0, 250), np.uint8)]
    sheet = cv2.imdecode(np.frombuffer(encode_pages(pages, ".PNG"), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert sheet.shape == (30, 50, 3)
    assert np.array_equal(sheet[:20, :30], pages[0])
    assert np.array_equal(sheet[20:], pages[1])
    half = np.zeros((LONGEST_SIDE // 2, 1, 3), np.uint8)
    for suffix in (".jpg", ".png"):
        sheet = cv2.imdecode(np.frombuffer(encode_pages([half, half], suffix), np.uint8), cv2.IMREAD_COLOR)
        assert sheet.shape == (LONGEST_SIDE, 1, 3)
        with pytest.raises(UserError, match=f"1 x {LONGEST_SIDE + 1} pixels: .*fewer --batches"):
            encode_pages([half, half, half[:1]], suffix)


def test_the_command_says_where_the_run_ends_and_refuses_a_place_before_it_reads_images(
    shapes_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import show_batch

    data = ["--data.train-json", str(shapes_set / "train.json"), "--data.train-images", str(shapes_set / "train")]
    call = ["x", "atss_tiny", *data, "--schedule.batch", "2", "--schedule.steps", "3"]
    monkeypatch.setattr("sys.argv", [*call, "-o", str(tmp_path / "b.png"), "--first-step", "2", "--batches", "4"])
    show_batch.main()
    assert "the run ends after 3 steps: drew 1 of 4" in capsys.readouterr().out
    monkeypatch.setattr("train.show_batch.batches_of_run", lambda *_: pytest.fail("images are read"))
    monkeypatch.setattr("sys.argv", [*call, "-o", str(tmp_path / "b.png" / "c.png")])
    with pytest.raises(UserError, match="cannot write"):
        show_batch.main()


def test_the_command_line(tmp_path: Path) -> None:
    config, options = parse(["atss_tiny", "-o", "b.png", "--batches", "2", "--schedule.batch", "4"])
    assert (options.batches, options.first_step, config.schedule.batch) == (2, 0, 4)
    for wrong, message in (
        (["--batches", "0"], "--batches 0: expected at least 1"),
        (["--batches", "51"], "at most 50"),
        (["--first-step", "-1"], "--first-step -1: expected at least 0"),
        (["--schedule.batch", "0"], "--schedule.batch 0"),
    ):
        with pytest.raises(UserError, match=message):
            parse(["atss_tiny", "-o", "b.png", *wrong])
    with pytest.raises(UserError, match=r"b\.txt: expected a name that ends with \.png"):
        parse(["atss_tiny", "-o", "b.txt"])


def test_the_command_draws(shapes_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import show_batch

    data = ["--data.train-json", str(shapes_set / "train.json"), "--data.train-images", str(shapes_set / "train")]
    out = tmp_path / "b.png"
    monkeypatch.setattr(
        "sys.argv", ["x", "atss_tiny", *data, "-o", str(out), "--batches", "2", "--schedule.batch", "2"]
    )
    show_batch.main()
    page = cv2.imread(str(out))
    assert page.shape[0] > 2 * 192
    assert page.shape[1] > 2 * 192


def test_the_command_draws_the_mosaics_that_the_training_is_fed(
    shapes_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import show_batch

    settings = ["atss_tiny", "--data.train-json", str(shapes_set / "train.json"), "--augment.mosaic", "1"]
    settings += ["--data.train-images", str(shapes_set / "train"), "--schedule.batch", "2"]
    out = tmp_path / "b.png"
    monkeypatch.setattr("sys.argv", ["x", *settings, "-o", str(out), "--batches", "2"])
    show_batch.main()
    page = cv2.imread(str(out))[..., ::-1]
    config, _ = parse([*settings, "-o", str(out)])
    dataset = load_coco(config.data.train_json, config.data.train_images)
    fed = build_training_batches(dataset, replace(config, data=replace(config.data, workers=0)), 0)
    top = 0
    for step in range(2):
        batch = next(fed)
        assert len(batch.mosaic_ids) == 3 * len(batch.image_ids), "each of four images"
        own = draw_batch(batch, step, dataset.classes, config.preprocess.pad_value)
        assert np.array_equal(page[top : top + len(own), : own.shape[1]], own)
        # Where the network is told that a box is, the page has the colour of its class.
        height, width = batch.images.shape[1:3]
        drawn = 0
        for row in range(len(batch.images)):
            left = 6 + row * (width + 6)
            cell = page[top + 2 * HEADING + 6 :, left : left + width][:height].astype(int)
            mask = batch.targets.mask[row]
            for box, label in zip(batch.targets.boxes[row][mask], batch.targets.labels[row][mask], strict=True):
                x1, y1, x2, y2 = (int(value) for value in (*box[:2].floor(), *(box[2:].ceil() - 1)))
                outline = [*cell[y1:y2, x1], *cell[y1:y2, x2], *cell[y1, x1:x2], *cell[y2, x1:x2]]
                drawn += np.mean([np.array_equal(pixel, class_color(int(label))) for pixel in outline]) > 0.4
        assert drawn >= 0.8 * batch.targets.mask.sum() > 5, "others' names cover some"
        top += len(own)
