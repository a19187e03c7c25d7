"""Training batches: what the n-th sample depends on, bad images, crowds, padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.coco import CocoDataset, load_coco
from runtime.errors import UserError
from runtime.images.preprocess import boxes_to_canvas, load, make_batch
from runtime.manifest import Preprocess
from train.build import build_training_batches
from train.config import Augment, Config, DeviceName
from train.data import loader
from train.data.augment import Sample
from train.data.loader import Item, TrainBatch, TrainingStream, collate
from train.data.objects import crowds_as_objects

Make = Callable[..., Config]
PRE = Preprocess(short_side=64, long_side=96, pad_value=(1, 2, 3))


@pytest.fixture
def dataset(shapes_set: Path) -> CocoDataset:
    return load_coco(shapes_set / "train.json", shapes_set / "train")


def stream_of(dataset: CocoDataset, settings: Config, seed: int = 0, keep_empty: bool = True) -> TrainingStream:
    return TrainingStream(dataset, settings.augment, settings.preprocess, keep_empty, seed)


def same(a: Item, b: Item) -> bool:
    equal = [np.array_equal(x, y) for x, y in zip(a.sample, b.sample, strict=True)]
    return all(equal) and a.image_id == b.image_id


def test_the_nth_sample_depends_on_seed_and_n_only(dataset: CocoDataset, small_config: Make) -> None:
    first, second = stream_of(dataset, small_config()), stream_of(dataset, small_config())
    in_order = [first[n] for n in range(60)]
    for n in (59, 3, 31, 0, 3):
        assert same(second[n], in_order[n])
    other = stream_of(dataset, small_config(), seed=1)
    assert not all(same(other[n], in_order[n]) for n in range(5))


def test_every_epoch_has_every_image_once_in_another_order(dataset: CocoDataset, small_config: Make) -> None:
    stream = stream_of(dataset, small_config())
    epochs = [[stream[n].image_id for n in range(e * len(dataset), (e + 1) * len(dataset))] for e in range(3)]
    assert all(sorted(e) == sorted(dataset.image_ids.tolist()) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_same_image_is_augmented_differently_each_epoch(dataset: CocoDataset, small_config: Make) -> None:
    stream = stream_of(dataset, small_config())
    seen: dict[int, list[Item]] = {}
    for n in range(3 * len(dataset)):
        item = stream[n]
        seen.setdefault(item.image_id, []).append(item)
    assert not any(same(a, b) for a, b, _ in seen.values())


def equal_batches(a: TrainBatch, b: TrainBatch) -> bool:
    tensors = zip((a.images, *a.targets), (b.images, *b.targets), strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and a.image_ids == b.image_ids


def test_loader_processes_change_nothing(dataset: CocoDataset, small_config: Make) -> None:
    settings = small_config()
    alone = list(build_training_batches(dataset, settings, 0))
    helped = list(build_training_batches(dataset, replace(settings, data=replace(settings.data, workers=2)), 0))
    assert len(alone) == len(helped) == settings.schedule.steps
    assert all(equal_batches(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize(("device", "is_pinned"), [("auto", True), ("cuda", True), ("cpu", False)])
def test_a_training_on_the_cpu_takes_nothing_of_a_gpu(
    dataset: CocoDataset, small_config: Make, monkeypatch: pytest.MonkeyPatch, device: DeviceName, is_pinned: bool
) -> None:
    made: list[bool] = []

    def spy(*_: object, pin_memory: bool, **__: object) -> list[TrainBatch]:
        made.append(pin_memory)
        return []

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loader, "DataLoader", spy)
    config = small_config()
    assert list(build_training_batches(dataset, replace(config, run=replace(config.run, device=device)), 0)) == []
    assert made == [is_pinned]


def test_a_later_start_gives_the_tail(dataset: CocoDataset, small_config: Make) -> None:
    settings = small_config()
    whole = list(build_training_batches(dataset, settings, 0))
    for start in (1, 4, 6):
        tail = list(build_training_batches(dataset, settings, start))
        assert len(tail) == 6 - start
        assert all(equal_batches(a, b) for a, b in zip(tail, whole[start:], strict=True))
    assert list(build_training_batches(dataset, settings, 9)) == []


def test_an_unreadable_image_is_replaced_and_named(own_copy: Path, small_config: Make) -> None:
    dataset = load_coco(own_copy / "train.json", own_copy / "train")
    before = [stream_of(dataset, small_config())[n] for n in range(len(dataset))]
    bad = dataset.path(7)
    bad.write_bytes(bad.read_bytes()[:200])
    dataset.path(9).unlink()
    after = [stream_of(dataset, small_config())[n] for n in range(len(dataset))]
    gone = {int(dataset.image_ids[7]), int(dataset.image_ids[9])}
    for old, new in zip(before, after, strict=True):
        if old.image_id in gone:
            assert new.image_id not in gone
            assert 1 <= len(new.problems) <= 2
            assert all(str(bad) in p or str(dataset.path(9)) in p for p in new.problems)
        else:
            assert same(old, new)
            assert new.problems == []
    batch = collate(after, None, PRE)
    assert len(batch.problems) >= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_when_no_image_can_be_read_one_line_says_so(workers: int, own_copy: Path, small_config: Make) -> None:
    dataset = load_coco(own_copy / "train.json", own_copy / "train")
    shutil.rmtree(own_copy / "train")
    settings = small_config()
    with pytest.raises(UserError, match="in a row can't be read") as caught:
        list(build_training_batches(dataset, replace(settings, data=replace(settings.data, workers=workers)), 0))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def with_annotations(folder: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> CocoDataset:
    content = json.loads((folder / "train.json").read_text())
    content["annotations"] = change(content["annotations"])
    (folder / "train.json").write_text(json.dumps(content))
    return load_coco(folder / "train.json", folder / "train")


def test_crowd_boxes_are_no_targets(own_copy: Path, small_config: Make) -> None:
    def one_in_three(annotations: list[dict[str, object]]) -> list[dict[str, object]]:
        return [a | {"iscrowd": int(i % 3 == 0)} for i, a in enumerate(annotations)]

    dataset = with_annotations(own_copy, one_in_three)
    stream = TrainingStream(dataset, Augment(horizontal_flip=0), PRE, True, 0)
    for index in range(len(dataset)):
        boxes, labels, crowd = dataset.annotations(index)
        sample = stream.read(index, PRE.short_side)
        assert np.array_equal(sample.boxes, boxes[~crowd])
        assert np.array_equal(sample.labels, labels[~crowd])
    assert dataset.crowd.any()


def test_without_keep_empty_every_image_has_an_object_that_counts(own_copy: Path, small_config: Make) -> None:
    def first_is_a_crowd(annotations: list[dict[str, object]]) -> list[dict[str, object]]:
        return [a | {"iscrowd": int(a["image_id"] == annotations[0]["image_id"])} for a in annotations]

    dataset = with_annotations(own_copy, first_is_a_crowd)
    stream = stream_of(dataset, small_config(), keep_empty=False)
    counts = [int((~dataset.annotations(i)[2]).sum()) for i in range(len(dataset))]
    assert stream.indices.tolist() == [i for i, count in enumerate(counts) if count > 0]
    assert 0 in counts


@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "it has no annotations"),
        ({"bbox": None}, r"\d+ × neither a bbox nor a mask that can be read: annotation 1, .*"),
        (
            {"category_id": 99},
            r"\d+ × unknown category: annotation 1, .*category_id 99; the file's categories are \d+ \w+, .*",
        ),
        ({"ignore": 1}, r"\d+ × ignore 1, a region to ignore and not an object: annotation 1, .*"),
        ({"iscrowd": 1}, "all of its annotations have iscrowd 1"),
    ],
)
def test_a_data_set_without_any_object_is_refused(
    changes: dict[str, object] | None, reason: str, keep_empty: bool, own_copy: Path, small_config: Make
) -> None:
    dataset = with_annotations(own_copy, lambda found: [] if changes is None else [a | changes for a in found])
    with pytest.raises(UserError, match=rf"train\.json has no object to train on: {reason}"):
        stream_of(dataset, small_config(), keep_empty=keep_empty)


def test_the_reasons_are_said_once_where_there_is_no_object(own_copy: Path) -> None:
    """Before the problems are printed as warnings, so that the error alone has them."""
    dataset = with_annotations(own_copy, lambda found: [a | {"category_id": 99} for a in found])
    with pytest.raises(UserError, match=r"unknown category: .* \(category_id 99; the file's categories are 1 "):
        crowds_as_objects(dataset)
    assert crowds_as_objects(dataset, may_be_empty=True) == (dataset, ())


def test_boxes_in_fractions_of_the_image_are_refused(own_copy: Path, small_config: Make) -> None:
    dataset = with_annotations(own_copy, lambda found: [a | {"bbox": [0.25, 0.5, 0.5, 0.5]} for a in found])
    with pytest.raises(UserError, match="every box lies within the first pixel of its image; the coordinates seem to"):
        stream_of(dataset, small_config())
    dataset = with_annotations(own_copy, lambda found: [*found[1:], found[0] | {"bbox": [0.25, 0.5, 0.5, 0.51]}])
    stream_of(dataset, small_config())


def test_crowds_are_objects_where_nothing_else_is(own_copy: Path, small_config: Make) -> None:
    plain = load_coco(own_copy / "train.json", own_copy / "train")
    assert crowds_as_objects(plain) == (plain, ())
    some = with_annotations(own_copy, lambda found: [a | {"iscrowd": int(i < 3)} for i, a in enumerate(found)])
    kept, notes = crowds_as_objects(some)
    assert kept is some
    assert notes == (f"3 of {len(some.crowd)} annotations have iscrowd 1: crowds, which are no objects to train on",)
    every = with_annotations(own_copy, lambda found: [a | {"iscrowd": 1} for a in found])
    kept, (note,) = crowds_as_objects(every)
    assert "iscrowd 1, as CVAT writes masks" in note
    np.testing.assert_array_equal(kept.boxes, plain.boxes)
    assert not kept.crowd.any()
    for n in range(4):
        assert same(stream_of(kept, small_config())[n], stream_of(plain, small_config())[n])
    ignored = with_annotations(own_copy, lambda found: [a | {"ignore": int(i < 3)} for i, a in enumerate(found)])
    kept, (note,) = crowds_as_objects(ignored)
    assert int(kept.crowd.sum()) == 3, "regions to ignore stay so"


def test_regions_to_ignore_go_along_and_are_no_targets(own_copy: Path, small_config: Make) -> None:
    plain = load_coco(own_copy / "train.json", own_copy / "train")
    dataset = with_annotations(own_copy, lambda found: [a | {"ignore": int(i % 3 == 0)} for i, a in enumerate(found)])
    settings = small_config()
    (before,), (after,) = (list(build_training_batches(d, replace_steps(settings, 1), 0)) for d in (plain, dataset))
    assert before.regions is None
    assert after.regions is not None
    assert torch.equal(before.images, after.images)
    kept = 0
    for i in range(len(after.image_ids)):
        expected = before.targets.boxes[i][before.targets.mask[i]].tolist()
        objects = after.targets.boxes[i][after.targets.mask[i]].tolist()
        regions = after.regions[i][after.regions[i].any(dim=1)].tolist()
        assert all(box in expected for box in objects), "augmentation moves both alike"
        assert sum(box in regions for box in expected) + len(objects) == len(expected)
        kept += len(regions)
    assert kept > 0


def replace_steps(settings: Config, steps: int) -> Config:
    return replace(settings, schedule=replace(settings.schedule, steps=steps))


def item(height: int, width: int, boxes: int, image_id: int) -> Item:
    rng = np.random.default_rng(image_id)
    corner = rng.uniform(0, 20, (boxes, 2))
    xyxy = np.concatenate((corner, corner + 10), axis=1).astype(np.float32)
    image = rng.integers(10, 255, (height, width, 3), dtype=np.uint8)
    return Item(Sample(image, xyxy, np.full(boxes, image_id)), image_id, [f"p{image_id}"] * (image_id == 2))


def test_collating_pads_images_and_boxes() -> None:
    items = [item(50, 60, 2, 1), item(64, 33, 0, 2), item(20, 96, 5, 3)]
    batch = collate(items, None, PRE)
    assert batch.images.shape == (3, 64, 96, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.boxes.shape == (3, 5, 4)
    assert batch.targets.mask.sum(dim=1).tolist() == [2, 0, 5]
    assert batch.image_ids == [1, 2, 3]
    assert batch.problems == ["p2"]
    for i, (sample, *_) in enumerate(items):
        h, w = sample.image.shape[:2]
        image = batch.images[i].numpy()
        assert (image[:h, :w] == sample.image).all()
        assert (image[h:] == PRE.pad_value).all()
        assert (image[:, w:] == PRE.pad_value).all()
        mask = batch.targets.mask[i]
        assert np.array_equal(batch.targets.boxes[i][mask].numpy(), sample.boxes)
        assert batch.targets.labels[i][mask].tolist() == sample.labels.tolist()
        assert (batch.targets.boxes[i][~mask] == 0).all()


def test_a_batch_of_empty_images_and_a_fixed_canvas() -> None:
    batch = collate([item(30, 30, 0, 1), item(20, 20, 0, 2)], (100, 64), PRE)
    assert batch.images.shape == (2, 128, 64, 3), "sides rounded up to multiples of 32"
    assert batch.targets.boxes.shape == (2, 1, 4)
    assert not batch.targets.mask.any()


@pytest.mark.parametrize("size_hw", [(60, 80), (96, 128), (256, 384), (258, 346), (257, 345), (512, 768)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_training_sees_the_pixels_of_deployment(tmp_path: Path, size_hw: tuple[int, int], suffix: str) -> None:
    """A sample that nothing changes has, bit for bit, the pixels that the network gets when the file is detected on."""
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), image)
    x, y = size_hw[1] / 4, size_hw[0] / 4
    content = {
        "images": [{"id": 1, "file_name": f"a.{suffix}", "height": size_hw[0], "width": size_hw[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, 2 * x, y]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = load_coco(tmp_path / "a.json", tmp_path)
    for pre in (PRE, replace(PRE, divide_large=False)):
        unchanged = Augment(horizontal_flip=0, short_side_min=pre.short_side, short_side_max=pre.short_side)
        sample = TrainingStream(dataset, unchanged, pre, True, 0)[0].sample
        deployed = make_batch([load(tmp_path / f"a.{suffix}", pre)], pre)
        height, width = deployed.image_sizes[0]
        np.testing.assert_array_equal(sample.image, deployed.images[0, :height, :width])
        expected = boxes_to_canvas(np.array([[x, y, 3 * x, 2 * y]]), deployed.geometries[0])
        np.testing.assert_allclose(sample.boxes, expected, rtol=1e-6)
