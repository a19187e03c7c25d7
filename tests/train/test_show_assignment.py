"""The drawing's data are the assigner's own; that an image comes out is seen in tests/test_end_to_end.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.coco import load_coco
from train.config.recipes import RECIPES
from train.show_assignment import assign_image, draw_scene


@pytest.mark.parametrize("name", ["atss_tiny", "fcos_r50_fpn_1x", "retinanet_r50_fpn_1x"])
def test_a_scene_shows_the_recipes_own_positives(name: str, shapes_set: Path, tmp_path: Path) -> None:
    dataset = load_coco(shapes_set / "train.json", shapes_set / "train")
    index = int(np.argmax(np.diff(dataset.offsets)))
    scene = assign_image(dataset, index, RECIPES[name]())
    assert len(scene.names) == len(scene.boxes) == len(scene.shown) > 1
    assert len(scene.matched) == sum(level.anchors for level in scene.levels)
    assert (scene.thresholds is not None) == (name == "atss_tiny")
    for g, candidates in enumerate(scene.shown):
        assert set(np.flatnonzero(scene.matched == g)) <= set(candidates.tolist())
    assert (scene.matched >= 0).any()
    draw_scene(scene, tmp_path / "scene.png")
    assert (tmp_path / "scene.png").stat().st_size > 10_000
