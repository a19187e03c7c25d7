"""Images that lie on the device: what is drawn there is what the host's augmentation makes of the same choices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.device_data import DeviceImages, Placed, choose, decode, jitter_colours, move_images, move_targets
from benchmarks.gpu.reproduction import REHEARSAL, TABLE, Size, preprocess, settings
from runtime.coco import CocoDataset, load_coco
from runtime.training_log import LOG, read_log
from tests.support.fake_gpu import FAKE_GPU, HostWaits, fake_gpu
from train import shapes
from train.config import Augment, Config
from train.data import augment as host
from train.data.augment import Sample
from train.loss.criterion import Targets
from train.reproduce.systems import systems
from train.trainer.loop import train_detector

SIDE = 96
CPU = torch.device("cpu")
PAD = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    shapes.generate(out, shapes.Settings(train=12, val=4, seed=3, size=SIDE), progress=False)
    return out


@pytest.fixture(scope="module")
def dataset(folder: Path) -> CocoDataset:
    return load_coco(folder / "train.json", folder / "train")


@pytest.fixture(scope="module")
def images(dataset: CocoDataset, folder: Path) -> DeviceImages:
    return DeviceImages(dataset, decode(dataset, SIDE, PAD, 2, folder / "pixels.npy"), PAD, CPU)


def chosen(dataset: CocoDataset, augment: Augment, images: DeviceImages) -> Placed:
    return choose(images.sizes_hw, augment, SIDE, torch.Generator().manual_seed(0))


def config(folder: Path, augment: Augment | None = None) -> Config:
    found = settings(REHEARSAL, systems()[6], 0, folder, CPU)
    return found if augment is None else replace(found, augment=augment)


def test_all_images_and_boxes_are_there(dataset: CocoDataset, images: DeviceImages) -> None:
    for index in range(len(dataset)):
        image, (boxes, labels, crowd) = dataset.image(index), dataset.annotations(index)
        height, width = image.shape[:2]
        assert np.array_equal(images.images[index, :height, :width], image)
        assert (images.images[index, height:] == torch.tensor(PAD)).all()
        assert (images.images[index, :, width:] == torch.tensor(PAD)).all()
        mask = images.targets.mask[index]
        assert not crowd.any()
        assert np.array_equal(images.targets.boxes[index][mask], boxes)
        assert np.array_equal(images.targets.labels[index][mask], labels)


@pytest.mark.parametrize("horizontal", [0.0, 1.0])
@pytest.mark.parametrize("vertical", [0.0, 1.0])
@pytest.mark.parametrize("swapped", [0.0, 1.0])
def test_flips_are_the_hosts(
    dataset: CocoDataset, images: DeviceImages, horizontal: float, vertical: float, swapped: float
) -> None:
    # At the images' own size nothing is interpolated, so that the pixels are equal. The squares are larger.
    for index in range(len(dataset)):
        image, (boxes, labels, _) = dataset.image(index), dataset.annotations(index)
        short = min(image.shape[:2])
        augment = Augment(horizontal, vertical, swapped, short, short)
        placed = choose(images.sizes_hw[[index]], augment, SIDE, torch.Generator().manual_seed(0))
        expected = Sample(image, boxes, labels)
        for probability, change in (
            (horizontal, host.flip_horizontal),
            (vertical, host.flip_vertical),
            (swapped, host.transpose),
        ):
            expected = change(expected) if probability else expected
        moved = move_images(images.images[[index]], placed, torch.tensor(PAD).float())[0]
        height, width = expected.image.shape[:2]
        assert np.array_equal(moved[:height, :width], expected.image)
        assert (moved[height:] == torch.tensor(PAD)).all()
        assert (moved[:, width:] == torch.tensor(PAD)).all()
        targets = move_targets(Targets(*(t[[index]] for t in images.targets)), placed, SIDE, 0.3)
        assert np.allclose(targets.boxes[0][targets.mask[0]], expected.boxes, atol=1e-4)


def test_scaled_and_cropped_boxes_are_the_hosts(dataset: CocoDataset, images: DeviceImages) -> None:
    augment = Augment(0, 0, 0, 100, 140, crop=(SIDE, SIDE))
    placed = chosen(dataset, augment, images)
    targets = move_targets(images.targets, placed, SIDE, augment.min_visible)
    dropped = 0
    for index in range(len(dataset)):
        image, (boxes, labels, _) = dataset.image(index), dataset.annotations(index)
        scale = float(placed.linear[index, 0, 0])
        assert 100 <= scale * min(image.shape[:2]) <= 140 + 1e-3
        left, top = -placed.shift[index].numpy()
        assert 0 <= left <= scale * image.shape[1] - SIDE + 1e-3
        assert 0 <= top <= scale * image.shape[0] - SIDE + 1e-3
        # The host's windows begin at whole pixels and these don't: the host gets boxes that are shifted already.
        shifted = boxes * np.float32(scale) - np.array([left, top, left, top], np.float32)
        window = Sample(np.zeros((SIDE, SIDE, 3), np.uint8), shifted, labels)
        expected = host.random_crop(window, (SIDE, SIDE), augment.min_visible, np.random.default_rng(0))
        mask = targets.mask[index]
        assert np.allclose(targets.boxes[index][mask], expected.boxes, atol=1e-3)
        assert np.array_equal(targets.labels[index][mask], expected.labels)
        dropped += len(boxes) - int(mask.sum())
    assert dropped > 0
    assert (targets.boxes[~targets.mask] == 0).all()


def test_colours_stay_in_the_hosts_bounds() -> None:
    grey = torch.full((200, 2, 2, 3), 200, dtype=torch.uint8)
    none = Augment()
    assert torch.equal(jitter_colours(grey, none, torch.Generator()), grey)
    changed = jitter_colours(grey, Augment(brightness=0.1, contrast=0.2), torch.Generator().manual_seed(1)).float()
    assert (changed == changed[:, :1, :1, :1]).all()
    assert 200 - 25.5 - 0.2 * 72.5 - 1 <= changed.min() < 180
    assert 220 < changed.max() <= 200 + 25.5 + 0.2 * 72.5 + 1
    colour = torch.tensor([200, 100, 60], dtype=torch.uint8).expand(50, 1, 1, 3)
    saturated = jitter_colours(colour, Augment(saturation=0.5), torch.Generator().manual_seed(1)).float()
    assert ((saturated.mean(dim=3) - 120).abs() <= 1).all()
    assert saturated[..., 0].min() < 180 < 220 < saturated[..., 0].max()


def test_the_host_waits_for_nothing_while_a_gpu_augments() -> None:
    augment = Augment(0.5, 0.5, 0.5, 100, 140, (SIDE, SIDE), 0.1, 0.1, 0.1)
    with fake_gpu():
        images = torch.zeros((2, SIDE, SIDE, 3), dtype=torch.uint8, device=FAKE_GPU)
        sizes_hw, pad = (torch.zeros(shape, device=FAKE_GPU) for shape in ((2, 2), (3,)))
        boxes, labels = torch.zeros(2, 4, 4, device=FAKE_GPU), torch.zeros(2, 4, dtype=torch.int64, device=FAKE_GPU)
        with HostWaits():
            placed = choose(sizes_hw, augment, SIDE, torch.Generator())
            changed = jitter_colours(move_images(images, placed, pad), augment, torch.Generator())
            targets = move_targets(Targets(boxes, labels, labels == 0), placed, SIDE, augment.min_visible)
        assert {tensor.device for tensor in (*placed, changed, *targets)} == {FAKE_GPU}


def test_batches_follow_from_seed_and_step(folder: Path, dataset: CocoDataset, images: DeviceImages) -> None:
    plain = config(folder)
    longer = replace(plain, schedule=replace(plain.schedule, steps=5))
    whole = list(images(dataset, longer, 0, 4, 0))
    assert [batch.image_ids for batch in images(dataset, longer, 3, 4, 0)] == [b.image_ids for b in whole[3:]]
    for late, same in zip(images(dataset, longer, 3, 4, 0), whole[3:], strict=True):
        assert torch.equal(late.images, same.images)
        assert torch.equal(late.targets.boxes, same.targets.boxes)
    epoch = [image_id for batch in whole[:3] for image_id in batch.image_ids]
    assert sorted(epoch) == sorted(dataset.image_ids.tolist())
    other = replace(longer, run=replace(longer.run, seed=1))
    assert not torch.equal(next(images(dataset, other, 0, 4, 0)).images, whole[0].images)


def test_a_detector_trains_on_them(folder: Path, images: DeviceImages, tmp_path: Path) -> None:
    train_detector(config(folder), tmp_path / "run", make_batches=images)
    kinds = [line["kind"] for line in read_log(tmp_path / "run" / LOG)]
    assert kinds == ["train", "val"]
    assert preprocess(REHEARSAL).long_side == SIDE


def test_no_training_begins_that_an_h200_would_not_end_in_time(repository: Path) -> None:
    report = json.loads((repository / "docs/gpu_report_h200.json").read_text(encoding="utf-8"))
    rows = report["steps"]["reproduction"]["tables"][TABLE]
    for row in rows:
        assert (row["steps"], row["batch"], row["images"]) == (Size().steps, Size().batch, Size().train)
        assert row["seconds_with_evaluation"] <= Size().seconds
    assert rows
