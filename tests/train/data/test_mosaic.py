"""Mosaics: boxes follow their pixels, and what the n-th sample is follows from the seed and n alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from runtime.coco import CocoDataset, load_coco
from runtime.errors import UserError
from runtime.manifest import Preprocess
from runtime.records import RecordError, check_record
from train.build import build_training_batches
from train.config import Augment, Config
from train.data.augment import REGION, Sample
from train.data.loader import TrainBatch, TrainingStream
from train.data.mosaic import Corner, Layout, corners, draw_layout, join_parts

Make = Callable[..., Config]
PAD = (1, 2, 3)
PRE = Preprocess(short_side=64, long_side=96, pad_value=PAD)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
MOSAIC = Augment(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    transpose=0.5,
    short_side_min=56,
    short_side_max=80,
    crop=(64, 80),
    min_visible=0.0,
    mosaic=1.0,
)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    """Dark images, each with a rectangle in the colour of its class, of several sizes; the last one is empty.

    The rectangle of image 1 is a region to ignore, and image 0 is so large that it is divided before its resize.
    """
    folder, rng = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    images, annotations = [], []
    sizes = [(256, 384), (64, 96), (96, 64), (40, 120), (80, 80), (33, 47), (50, 70)]
    for number, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        if number < len(COLOURS):
            x, y = int(rng.integers(0, width // 3)), int(rng.integers(0, height // 3))
            w, h = int(rng.integers(width // 3, width - x)), int(rng.integers(height // 3, height - y))
            pixels[y : y + h, x : x + w] = COLOURS[number]
            box = {"bbox": [x, y, w, h], "category_id": number + 1, "ignore": int(number == 1)}
            annotations.append({"id": number + 1, "image_id": number + 1, **box})
        cv2.imwrite(str(folder / f"{number}.png"), pixels[..., ::-1])
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": number + 1, "name": f"c{number}"} for number in range(len(COLOURS))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return load_coco(folder / "a.json", folder)


def stream_of(dataset: CocoDataset, settings: Augment, pre: Preprocess = PRE, **options: Any) -> TrainingStream:
    return TrainingStream(dataset, settings, pre, True, 0, **options)


def empty(height: int, width: int) -> Sample:
    return Sample(np.full((height, width, 3), 9, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


CANVASES = [(1, 1), (1, 7), (2, 2), (5, 3), (64, 80), (33, 100)]


@pytest.mark.parametrize("canvas_hw", CANVASES)
def test_the_corners_cover_the_canvas_once(canvas_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        layout = draw_layout(MOSAIC, rng)
        assert layout is not None
        count = np.zeros(canvas_hw, int)
        for corner in corners(canvas_hw, layout):
            count[corner.top : corner.top + corner.height, corner.left : corner.left + corner.width] += 1
        assert (count == 1).all()


def test_layouts_follow_the_settings() -> None:
    rng = np.random.default_rng(2)
    assert draw_layout(replace(MOSAIC, mosaic=0.0), rng) is None
    some = [draw_layout(replace(MOSAIC, mosaic=0.3, mosaic_scale=(0.4, 0.6)), rng) for _ in range(1000)]
    drawn = [layout for layout in some if layout is not None]
    assert 230 < len(drawn) < 370
    scales = np.array([layout.scales for layout in drawn])
    assert scales.shape == (len(drawn), 4)
    assert 0.4 <= scales.min() < 0.42
    assert 0.58 < scales.max() <= 0.6
    meet = np.array([layout.meet_yx for layout in drawn])
    assert (meet >= 0.25).all()
    assert (meet <= 0.75).all()
    with pytest.raises(RecordError, match="two factors, the smaller first"):
        check_record(replace(MOSAIC, mosaic_scale=(1.0, 0.5)), "test")


def test_four_empty_images_make_an_empty_mosaic() -> None:
    where = corners((20, 30), Layout((0.5, 0.5), (1.0,) * 4, (0.0,) * 3))
    joined = join_parts((20, 30), where, [empty(10, 15)] * 4, PAD)
    assert (joined.image == 9).all()
    assert joined.boxes.shape == (0, 4)
    assert joined.labels.shape == (0,)


def pasted(canvas_hw: tuple[int, int], where: list[Corner], parts: list[Sample]) -> Sample:
    """The slow reference: pixel by pixel, outwards from where the corners meet; a box goes as its first pixel goes."""
    image = np.array([[PAD] * canvas_hw[1]] * canvas_hw[0], np.uint8)
    boxes, labels = [], []
    for corner, part in zip(where, parts, strict=True):
        height, width = part.image.shape[:2]
        target = {}
        for y in range(height):
            for x in range(width):
                to_y = corner.top + corner.height - (height - y) if corner.to_bottom else corner.top + y
                to_x = corner.left + corner.width - (width - x) if corner.to_right else corner.left + x
                image[to_y, to_x] = part.image[y, x]
                target[x, y] = to_x, to_y
        for box, label in zip(part.boxes.tolist(), part.labels.tolist(), strict=True):
            x, y = int(box[0]), int(box[1])
            dx, dy = target[x, y][0] - x, target[x, y][1] - y
            boxes.append([box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy])
            labels.append(label)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def test_joined_parts_equal_pixels_pasted_one_by_one() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        canvas_hw = int(rng.integers(4, 40)), int(rng.integers(4, 40))
        layout = draw_layout(MOSAIC, rng)
        assert layout is not None
        where, parts = corners(canvas_hw, layout), []
        for corner in where:
            h, w = int(rng.integers(1, corner.height + 1)), int(rng.integers(1, corner.width + 1))
            corner_xy = rng.uniform(0, [w - 0.5, h - 0.5], (int(rng.integers(0, 3)), 2))
            boxes = np.concatenate([corner_xy, corner_xy + rng.uniform(1, 5, corner_xy.shape)], axis=1)
            labels = rng.integers(-1, 3, len(boxes))
            image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
            parts.append(Sample(image, boxes.astype(np.float32), labels))
        joined, expected = join_parts(canvas_hw, where, parts, PAD), pasted(canvas_hw, where, parts)
        assert np.array_equal(joined.image, expected.image)
        np.testing.assert_allclose(joined.boxes, expected.boxes, atol=1e-5)
        assert joined.labels.tolist() == expected.labels.tolist()


def of_colour(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels have a colour, resizing and padding aside."""
    return ((image >= 128) == (np.array(colour) == 255)).all(axis=2)


@pytest.mark.parametrize("crop", [(64, 80), (0, 0)])
@pytest.mark.parametrize("divide_large", [True, False])
def test_boxes_follow_their_pixels(crop: tuple[int, int], divide_large: bool, painted: CocoDataset) -> None:
    stream = stream_of(painted, replace(MOSAIC, crop=crop), replace(PRE, divide_large=divide_large))
    found = dict.fromkeys([REGION, *range(len(COLOURS))], 0)
    for n in range(60):
        sample = stream[n].sample
        height, width = sample.image.shape[:2]
        assert crop in ((0, 0), (height, width))
        left_over = {label: of_colour(sample.image, colour) for label, colour in enumerate(COLOURS)}
        for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
            assert (box[:2] >= 0).all()
            assert (box[2:] <= [width, height]).all()
            colour = 1 if label == REGION else label
            x1, y1, x2, y2 = np.round(box).astype(int)
            inside = of_colour(sample.image, COLOURS[colour])[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            assert inside.all(), "the box has its own pixels alone"
            left_over[colour][max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
            found[label] += 1
        # A strip of less than a pixel has no box.
        assert all(pixels.sum(axis=0).max() <= 1 or pixels.sum(axis=1).max() <= 1 for pixels in left_over.values())
    assert found.pop(1) == 0, "a region to ignore is no object of its class"
    assert min(found.values()) > 5, found


def test_hardly_visible_objects_are_dropped_at_a_corners_border(painted: CocoDataset) -> None:
    counts = []
    for visible in (0.0, 0.5, 0.95):
        stream = stream_of(painted, replace(MOSAIC, min_visible=visible))
        samples = [stream[n].sample for n in range(40)]
        counts.append([int((s.labels != REGION).sum()) for s in samples])
        regions = sum(int((s.labels == REGION).sum()) for s in samples)
        assert regions > 5, "of a region to ignore anything that is left counts"
    assert sum(counts[0]) > sum(counts[1]) > sum(counts[2]) > 0


def same(a: Sample, b: Sample) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_images_that_are_no_mosaic_are_as_without_mosaics(painted: CocoDataset) -> None:
    plain = stream_of(painted, replace(MOSAIC, mosaic=0.0))
    some = stream_of(painted, replace(MOSAIC, mosaic=0.5))
    items = [some[n] for n in range(60)]
    for n, item in enumerate(items):
        assert same(item.sample, plain[n].sample) == (not item.other_ids)
        assert item.image_id == plain[n].image_id
    assert 15 < sum(bool(item.other_ids) for item in items) < 45


def test_the_nth_mosaic_depends_on_seed_and_n_only(painted: CocoDataset) -> None:
    first, second = stream_of(painted, MOSAIC), stream_of(painted, MOSAIC)
    in_order = [first[n] for n in range(30)]
    for n in (29, 3, 17, 0, 3):
        assert same(second[n].sample, in_order[n].sample)
        assert second[n].other_ids == in_order[n].other_ids
    other = TrainingStream(painted, MOSAIC, PRE, True, 1)
    assert not any(same(other[n].sample, in_order[n].sample) for n in range(5))
    partners = {i for item in in_order for i in item.other_ids}
    assert partners == set(painted.image_ids.tolist())


def test_whole_images_keep_their_canvas_and_their_groups(painted: CocoDataset) -> None:
    """Without a crop the canvas is the first image's, so batches that are all landscape stay so."""
    settings = replace(MOSAIC, crop=(0, 0), transpose=0.0, short_side_max=56)
    mosaics, plain = (stream_of(painted, replace(settings, mosaic=share), group=3) for share in (1.0, 0.0))
    for n in range(30):
        assert mosaics[n].sample.image.shape == plain[n].sample.image.shape
        assert mosaics[n].image_id == plain[n].image_id


def test_an_unreadable_part_is_replaced_and_named(painted: CocoDataset, tmp_path: Path) -> None:
    for index in range(len(painted)):
        (tmp_path / painted.file_names[index]).write_bytes(painted.path(index).read_bytes())
    dataset = load_coco(painted.json_path, tmp_path)
    before = [stream_of(dataset, MOSAIC)[n] for n in range(30)]
    dataset.path(4).write_bytes(b"")
    gone, affected = int(dataset.image_ids[4]), 0
    for n, old in enumerate(before):
        new = stream_of(dataset, MOSAIC)[n]
        ids = (old.image_id, *old.other_ids)
        assert gone not in (new.image_id, *new.other_ids)
        assert len(new.problems) == ids.count(gone)
        assert all(dataset.file_names[4] in problem for problem in new.problems)
        assert gone in ids or same(old.sample, new.sample)
        affected += gone in ids
    assert affected > 3
    for index in range(len(dataset)):
        dataset.path(index).unlink(missing_ok=True)
    with pytest.raises(UserError, match="in a row can't be read"):
        stream_of(dataset, MOSAIC)[0]


def with_mosaics(settings: Config, **changes: Any) -> Config:
    augment = replace(settings.augment, mosaic=0.7, **changes)
    return replace(settings, augment=augment, data=replace(settings.data, repeat_threshold=0.9))


def batches(settings: Config, first: int = 0, *part: int) -> list[TrainBatch]:
    dataset = load_coco(settings.data.train_json, settings.data.train_images)
    return list(build_training_batches(dataset, settings, first, *part))


def equal(a: TrainBatch, b: TrainBatch) -> bool:
    tensors = zip((a.images, *a.targets), (b.images, *b.targets), strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and (a.image_ids, a.mosaic_ids) == (b.image_ids, b.mosaic_ids)


def test_loader_processes_and_a_later_start_change_nothing(small_config: Make) -> None:
    settings = with_mosaics(small_config(batch=4, steps=9))
    whole = batches(settings)
    assert sum(len(batch.mosaic_ids) for batch in whole) > 3 * 15
    helped = batches(replace(settings, data=replace(settings.data, workers=2)))
    assert all(equal(a, b) for a, b in zip(whole, helped, strict=True))
    assert all(equal(a, b) for a, b in zip(whole[5:], batches(settings, 5), strict=True))


@pytest.mark.parametrize("size", [2, 4])
def test_processes_together_see_the_mosaics_of_one(size: int, small_config: Make) -> None:
    settings = with_mosaics(small_config(batch=4))
    parts = [batches(settings, 1, 4 // size, rank) for rank in range(size)]
    for step, whole in enumerate(batches(settings, 1)):
        assert torch.equal(torch.cat([part[step].images for part in parts]), whole.images)
        assert sum((part[step].mosaic_ids for part in parts), ()) == whole.mosaic_ids


def test_mosaics_end_with_their_share_of_the_steps(small_config: Make) -> None:
    settings = with_mosaics(small_config(batch=4, steps=10))
    until = with_mosaics(small_config(batch=4, steps=10), mosaic_until=0.6)
    never = replace(settings, augment=replace(settings.augment, mosaic=0.0))
    ends = batches(until)
    assert all(equal(a, b) for a, b in zip(ends[:6], batches(settings)[:6], strict=True))
    assert all(equal(a, b) for a, b in zip(ends[6:], batches(never)[6:], strict=True))
    assert ends[5].mosaic_ids
