"""The miniature's first weights: where the crops lie, what is learnt, and that the trainings can load the file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.coco import load_coco
from train.model.backbones import build_backbone
from train.reproduce.pretrain import CROP, crop_around, crops_of_batch, pretrain
from train.reproduce.systems import BACKBONE


@pytest.mark.parametrize("box", [(20, 30, 60, 50), (0, 0, 30, 80), (90, 90, 100, 100)])
def test_a_crop_shows_its_object_at_half_to_all_of_its_size(box: tuple[int, int, int, int]) -> None:
    """The longer side takes 1 / 1 to 1 / 2 of the crop; shifted by 0.15 of it at most, over a third of it is seen."""
    left, top, right, bottom = box
    image = np.zeros((100, 100, 3), np.uint8)
    image[top:bottom, left:right] = 255
    longer, shorter = max(right - left, bottom - top), min(right - left, bottom - top)
    seen = [crop_around(image, np.array(box, np.float32), np.random.default_rng(seed)) > 127 for seed in range(40)]
    sides = [max(int(crop[..., 0].any(axis=axis).sum()) for axis in (0, 1)) for crop in seen]
    assert min(sides) >= CROP / 2 - 2
    assert max(sides) > 0.85 * CROP
    assert all(crop.shape == (CROP, CROP, 3) for crop in seen)
    areas = [crop[..., 0].mean() for crop in seen]
    assert min(areas) > 0.2 * shorter / longer
    assert max(areas) < 1.05 * shorter / longer


def test_an_epoch_has_every_object_once(shapes_set: Path) -> None:
    dataset = load_coco(shapes_set / "train.json", shapes_set / "train")
    images, labels = zip(*(crops_of_batch(dataset, batch) for batch in range(len(dataset) // 12)), strict=True)
    truth = np.concatenate([dataset.annotations(index)[1] for index in range(len(dataset))])
    assert sorted(torch.cat(labels).tolist()) == sorted(truth.tolist())
    assert sum(map(len, images)) == len(truth)


def test_the_same_weights_every_time_that_a_training_can_load(
    shapes_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("once", "again"):
        pretrain(shapes_set, tmp_path / name, epochs=1)
    once, again = (torch.load(tmp_path / name, weights_only=True) for name in ("once", "again"))
    assert all(torch.equal(once[key], again[key]) for key in once)
    network = build_backbone(replace(BACKBONE, weights=str(tmp_path / "once")))
    assert all(torch.equal(value, once[key]) for key, value in network.state_dict().items())
    capsys.readouterr()


@pytest.mark.slow
def test_the_crops_are_learnt(shapes_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(shapes_set, tmp_path / "weights", epochs=40)
    right = [float(value) for value in re.findall(r"classified: ([\d.]+) right", capsys.readouterr().out)]
    assert len(right) == 40
    assert np.mean(right[:5]) < 0.25, "8 classes: hardly above chance"
    assert np.mean(right[-5:]) > 2 * np.mean(right[:5])
