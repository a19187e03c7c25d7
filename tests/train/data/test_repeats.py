"""Repeat-factor sampling against plain loops over the images, and the order of the repeated images."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.coco import CocoDataset, load_coco
from train.config import Config
from train.data.loader import TrainingStream
from train.data.repeats import class_factors, epoch_length, image_factors, repeats_note, rows_of_epoch
from train.data.sampler import EpochOrder
from train.trainer.loop import train_detector
from train.trainer.optim import in_steps

Make = Callable[..., Config]
CLASSES = ("everywhere", "rare", "crowd only", "never")


def long_tailed(folder: Path, images: int = 40) -> CocoDataset:
    """Images of which one in ten has the second class, with crowds, and some without objects."""
    annotations = []
    for image in range(images):
        labels = [0] * (image % 3) + ([1, 1] if image % 10 == 4 else [])
        for label, crowd in [(label, 0) for label in labels] + ([(2, 1)] if image % 4 == 0 else []):
            box = {"bbox": [1, 1, 20, 10], "category_id": label + 1, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + 1, "image_id": image + 1, **box})
    content = {
        "images": [
            {"id": i + 1, "file_name": f"{i}.png", "height": 60 if i % 3 else 30, "width": 40} for i in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return load_coco(folder / "a.json", folder)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return long_tailed(tmp_path)


def plain_factors(dataset: CocoDataset, indices: np.ndarray, threshold: float) -> tuple[list[float], list[float]]:
    """Classes' and images' factors, as the paper writes them."""
    labels_of = []
    for index in indices.tolist():
        _, labels, crowd = dataset.annotations(index)
        labels_of.append({label for label, is_crowd in zip(labels.tolist(), crowd, strict=True) if not is_crowd})
    of_class = []
    for label in range(len(dataset.classes)):
        frequency = sum(label in labels for labels in labels_of) / len(labels_of)
        of_class.append(max(1.0, math.sqrt(threshold / frequency)) if frequency else 1.0)
    return of_class, [max([of_class[label] for label in labels], default=1.0) for labels in labels_of]


def test_no_threshold_repeats_nothing(dataset: CocoDataset) -> None:
    every = np.arange(len(dataset))
    assert image_factors(dataset, every, 0.0) is None
    assert image_factors(dataset, every, 0.05) is None, "the rare class is in a tenth of the images"
    assert epoch_length(None, 40) == 40
    assert class_factors(dataset, every, 0.0).tolist() == [1.0] * 4


@pytest.mark.parametrize("threshold", [0.11, 0.3, 0.65, 1.0])
@pytest.mark.parametrize("part", ["every", "with objects", "few"])
def test_factors_equal_plain_loops(threshold: float, part: str, dataset: CocoDataset) -> None:
    indices = {
        "every": np.arange(40),
        "with objects": np.array([i for i in range(40) if i % 3 or i % 10 == 4]),
        "few": np.array([4, 5, 6, 14]),
    }[part]
    of_class, of_image = plain_factors(dataset, indices, threshold)
    np.testing.assert_allclose(class_factors(dataset, indices, threshold), of_class)
    found = image_factors(dataset, indices, threshold)
    np.testing.assert_allclose(np.ones(len(indices)) if found is None else found, of_image)


def test_an_epoch_has_each_image_its_factor_in_the_mean() -> None:
    factors = np.array([1.0, 1.25, 2.0, 3.6, 1.0, 7.5])
    epochs = [rows_of_epoch(factors, 3, epoch) for epoch in range(2000)]
    counts = np.array([np.bincount(rows, minlength=6) for rows in epochs])
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)
    assert np.array_equal(epochs[7], rows_of_epoch(factors, 3, 7))
    assert not np.array_equal(epochs[7], rows_of_epoch(factors, 4, 7))
    np.testing.assert_allclose(counts.sum(axis=1).mean(), epoch_length(factors, 6), atol=1)


FACTORS = np.random.default_rng(0).uniform(1, 3, 50)
PORTRAIT = np.random.default_rng(1).random(50) < 0.3


@pytest.mark.parametrize("group", [0, 8])
def test_the_order_is_that_of_whole_epochs_one_after_the_other(group: int) -> None:
    order = EpochOrder(PORTRAIT, 5, group, FACTORS)
    run = []
    for n in range(600):
        rows, position = order.around(n)
        run.append(int(rows[position]))
    start = 0
    for epoch in range(5):
        expected = rows_of_epoch(FACTORS, 5, epoch)
        assert sorted(run[start : start + len(expected)]) == expected.tolist()
        assert run[start : start + len(expected)] != expected.tolist(), "shuffled"
        start += len(expected)
    backwards = EpochOrder(PORTRAIT, 5, group, FACTORS)
    for n in reversed(range(600)):
        rows, position = backwards.around(n)
        assert rows[position] == run[n]
    kinds = PORTRAIT[run][: start // 8 * 8].reshape(-1, 8)
    mixed = int((kinds.any(axis=1) & ~kinds.all(axis=1)).sum())
    assert mixed <= 2 * 5 if group else mixed > 20


def test_the_stream_repeats_rare_images(dataset: CocoDataset, small_config: Make) -> None:
    settings = small_config()
    stream = TrainingStream(dataset, settings.augment, settings.preprocess, True, 0, repeat_threshold=0.9)
    counts = Counter(stream.index_of(n) for n in range(30 * 60))
    rare, common = (np.mean([counts[i] for i in range(40) if (i % 10 == 4) == is_rare]) for is_rare in (True, False))
    of_class, _ = plain_factors(dataset, np.arange(40), 0.9)
    others = np.mean([of_class[0] if i % 3 else 1.0 for i in range(40) if i % 10 != 4])
    assert rare / common == pytest.approx(of_class[1] / others, rel=0.1)


def test_epochs_count_the_repeats(small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = small_config(epochs=0.5, batch=2)
    content = json.loads(Path(settings.data.train_json).read_text())
    first = content["categories"][0]["id"]
    kept = {content["images"][0]["id"]}  # the first class is in a single image
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != first or a["image_id"] in kept]
    content["annotations"].append(
        {**content["annotations"][0], "id": 9999, "image_id": min(kept), "category_id": first}
    )
    (tmp_path / "tail.json").write_text(json.dumps(content))
    data = replace(settings.data, train_json=str(tmp_path / "tail.json"), repeat_threshold=0.5)
    tail = load_coco(data.train_json, data.train_images)
    factors = image_factors(tail, np.arange(24), 0.5)
    assert factors is not None
    done = train_detector(replace(settings, data=data), tmp_path / "run")
    assert done.steps == in_steps(settings.schedule, epoch_length(factors, 24)).steps > 6
    said = capsys.readouterr().out
    assert f"--data.repeat-threshold 0.5 repeats images with {tail.classes[0]} 3.46, " in said
    assert f"an epoch has about {epoch_length(factors, 24)} samples of 24 images" in said


def test_the_note_names_the_rarest_classes(dataset: CocoDataset) -> None:
    every = np.arange(40)
    assert repeats_note(dataset, every, 0.01) == (
        "--data.repeat-threshold 0.01 repeats no image: every class is in at least this share of the 40 images"
    )
    assert repeats_note(dataset, every, 0.4) == (
        "--data.repeat-threshold 0.4 repeats images with rare 2: an epoch has about 44 samples of 40 images"
    )
    many = replace(dataset, classes=tuple(f"c{i}" for i in range(12)), labels=np.arange(len(dataset.labels)) % 12)
    assert " and 4 other classes: an epoch" in repeats_note(many, every, 1.0)
    nine = replace(many, labels=many.labels % 9)
    assert " and 1 other class: an epoch" in repeats_note(nine, every, 1.0)


def test_the_note_tells_a_small_factor_from_none_and_writes_large_ones_out(
    dataset: CocoDataset, tmp_path: Path
) -> None:
    assert "images with rare 1.02: " in repeats_note(dataset, np.arange(40), 0.1 * 1.02**2)
    many = long_tailed(tmp_path, 10_000)
    labels = np.zeros_like(many.labels)
    labels[np.flatnonzero(~many.crowd)[0]] = 1
    assert "images with rare 100, " in repeats_note(replace(many, labels=labels), np.arange(10_000), 1.0)


def test_a_long_run_finds_its_epoch_at_once() -> None:
    """Twenty images for 90,000 steps of 16 have 60,000 epochs: a search that copies their starts takes 1000 as long."""
    order = EpochOrder(np.zeros(20, bool), 0, 0, np.linspace(1, 1.4, 20))
    order.around(1_440_000)
    began = time.process_time()
    for n in range(1_440_000, 1_440_200):
        order.around(n)
    assert time.process_time() - began < 0.2
