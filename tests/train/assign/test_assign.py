"""ATSS against mmdet's assigner (goldens) and against a plain reading of Algorithm 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import reference
from train import config
from train.assign import NEGATIVE, atss
from train.geometry.anchors import grid_anchors, pyramid_levels

SCALE = 8.0
ANCHORS = config.Anchors(SCALE)
CANVASES = [(256, 256), (96, 384), (416, 64), (32, 32), (64, 32), (32, 320), (8, 8)]


def assign(boxes: Tensor, canvas_hw: tuple[int, int], k: int, levels: int = 5, scale: float = SCALE) -> list[int]:
    """Assignment of one image without padding."""
    mask = torch.ones(1, len(boxes), dtype=torch.bool)
    return (
        atss(boxes.unsqueeze(0), mask, pyramid_levels(canvas_hw, levels, config.Anchors(scale)), k).matched[0].tolist()
    )


def random_scene(canvas_hw: tuple[int, int], count: int, seed: int) -> Tensor:
    """Boxes of all sizes and shapes, most inside the canvas, some reaching its border; many on whole pixels."""
    rng = np.random.default_rng(seed)
    height, width = canvas_hw
    size = np.exp(rng.uniform(np.log(3), np.log(0.9 * max(canvas_hw)), (count, 2)))
    center = rng.uniform(0, 1, (count, 2)) * (width, height)
    boxes = np.concatenate((center - size / 2, center + size / 2), axis=1)
    boxes = boxes.clip(0, [width, height, width, height])
    whole = rng.random(count) < 0.5
    boxes[whole] = boxes[whole].round()
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return torch.tensor(boxes, dtype=torch.float32)


@pytest.mark.parametrize("method", [("atss9", 9), ("atss15", 15)])
def test_equals_mmdet(shared_dir: Path, method: tuple[str, int]) -> None:
    golden = np.load(shared_dir / "goldens" / "assign.npz")
    cases = [name.removesuffix("_size") for name in golden.files if name.endswith("_size")]
    assert len(cases) >= 8
    for case in cases:
        height, width = golden[f"{case}_size"].tolist()
        matched = np.array(assign(torch.from_numpy(golden[f"{case}_gt"]), (height, width), method[1]))
        positive = np.flatnonzero(matched != NEGATIVE)
        order = np.argsort(golden[f"{case}_{method[0]}_pos"])
        np.testing.assert_array_equal(positive, golden[f"{case}_{method[0]}_pos"][order], f"case {case}")
        np.testing.assert_array_equal(matched[positive], golden[f"{case}_{method[0]}_gt"][order], f"case {case}")


@pytest.mark.parametrize("canvas_hw", CANVASES)
def test_equals_plain_algorithm_1(canvas_hw: tuple[int, int]) -> None:
    positives = 0
    for seed, k in enumerate((1, 2, 4, 7, 9, 12, 17, 25)):
        boxes = random_scene(canvas_hw, 6, seed)
        expected = reference.atss(boxes, canvas_hw, 5, SCALE, k)
        assert assign(boxes, canvas_hw, k) == expected, f"k {k}"
        positives += sum(owner >= 0 for owner in expected)
    assert positives >= 5, "the scenes have something to assign"


def test_equals_plain_algorithm_1_with_other_levels_and_anchors() -> None:
    for levels, scale in ((3, 4.0), (4, 6.0), (6, 2.5)):
        boxes = random_scene((160, 224), 8, levels)
        expected = reference.atss(boxes, (160, 224), levels, scale, 9)
        assert assign(boxes, (160, 224), 9, levels, scale) == expected


def test_no_boxes_leave_every_anchor_negative() -> None:
    levels = pyramid_levels((64, 96), 5, ANCHORS)
    total = sum(level.cells for level in levels)
    none = atss(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), levels, 9).matched
    masked = atss(random_scene((64, 96), 3, 0)[None], torch.zeros(1, 3, dtype=torch.bool), levels, 9).matched
    assert none.shape == (2, total)
    assert none.dtype == torch.int64
    assert (none == NEGATIVE).all()
    assert (masked == NEGATIVE).all()


def test_a_batch_equals_its_images_one_by_one() -> None:
    """Padded rows repeat real boxes, so that a forgotten mask would show."""
    canvas_hw, levels = (128, 192), pyramid_levels((128, 192), 5, ANCHORS)
    scenes = [random_scene(canvas_hw, count, count) for count in (5, 1, 0, 9)]
    boxes, mask = random_scene(canvas_hw, 9, 99).repeat(4, 1, 1), torch.zeros(4, 9, dtype=torch.bool)
    for i, scene in enumerate(scenes):
        boxes[i, : len(scene)], mask[i, : len(scene)] = scene, True
    matched = atss(boxes, mask, levels, 9).matched
    for i, scene in enumerate(scenes):
        assert matched[i].tolist() == assign(scene, canvas_hw, 9)


def test_masked_rows_between_real_ones_are_skipped_and_indices_kept() -> None:
    canvas_hw, levels = (128, 128), pyramid_levels((128, 128), 5, ANCHORS)
    scene = random_scene(canvas_hw, 6, 3)
    mask = torch.tensor([[True, False, True, False, False, True]])
    matched = atss(scene[None], mask, levels, 9).matched[0]
    rows = mask[0].nonzero().flatten()
    alone = torch.tensor(assign(scene[rows], canvas_hw, 9))
    assert matched.tolist() == torch.where(alone >= 0, rows[alone.clamp(min=0)], NEGATIVE).tolist()


def test_padding_far_outside_or_not_a_number_changes_nothing() -> None:
    canvas_hw, levels = (64, 64), pyramid_levels((64, 64), 5, ANCHORS)
    scene = random_scene(canvas_hw, 2, 8)
    odd = torch.tensor([[1e9, 1e9, 2e9, 2e9], [-1e9, 0, -1e9, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[True, True, False, False, False]])
    assert atss(torch.cat((scene, odd))[None], mask, levels, 9).matched[0].tolist() == assign(scene, canvas_hw, 9)


def test_of_identical_boxes_the_first_gets_the_anchors() -> None:
    box = torch.tensor([[40.0, 30.0, 90.0, 100.0]])
    once, thrice = assign(box, (128, 128), 9), assign(box.repeat(3, 1), (128, 128), 9)
    assert set(once) == {NEGATIVE, 0}
    assert thrice == once


def test_an_anchor_wanted_by_two_boxes_goes_to_the_higher_overlap_in_either_order() -> None:
    anchor = [32.0, 32.0, 96.0, 96.0]  # centre 64, 64: no anchor of P3 is exactly there, so boxes share a few
    boxes = torch.tensor([[20.0, 20.0, 110.0, 110.0], anchor])
    forward, backward = assign(boxes, (128, 128), 9), assign(boxes.flip(0), (128, 128), 9)
    assert {0, 1} <= set(forward) | set(backward)
    assert [{0: 1, 1: 0, NEGATIVE: NEGATIVE}[i] for i in backward] == forward
    assert forward == reference.atss(boxes, (128, 128), 5, SCALE, 9)


def test_boxes_on_the_border_and_larger_than_the_canvas() -> None:
    boxes = torch.tensor([[0, 0, 20, 20], [108, 0, 128, 10], [0, 90, 12, 96], [100, 80, 128, 96], [0, 0, 128, 96]])
    boxes = torch.cat((boxes.float(), torch.tensor([[-30.0, -20.0, 160.0, 120.0]])))
    assert assign(boxes, (96, 128), 9) == reference.atss(boxes, (96, 128), 5, SCALE, 9)


def test_ties_in_distance_go_to_the_lower_anchor() -> None:
    """A box around a corner of four cells, k = 1: only the upper left one is a candidate, and so positive."""
    levels = pyramid_levels((128, 128), 1, config.Anchors(2.0))
    matched = assign(torch.tensor([[56.0, 56.0, 72.0, 72.0]]), (128, 128), 1, levels=1, scale=2.0)
    (anchor,) = [i for i, owner in enumerate(matched) if owner != NEGATIVE]
    assert grid_anchors(levels)[anchor].tolist() == [52, 52, 68, 68]


def test_grid_anchors_equal_the_plain_ones() -> None:
    for canvas_hw in (*CANVASES, (97, 641)):
        expected = [box for level in reference.anchors_of(canvas_hw, 5, SCALE) for box in level]
        torch.testing.assert_close(grid_anchors(pyramid_levels(canvas_hw, 5, ANCHORS)), torch.tensor(expected))
