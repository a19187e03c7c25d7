"""Every assigner against mmdet's (goldens); those without a golden, and details of all, against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from tests.support import reference
from tests.train.assign.test_assign import random_scene
from train import config
from train.assign import ASSIGNERS, NEGATIVE, Assigned, build_assigner
from train.geometry.anchors import Level, grid_anchors, grid_points, pyramid_levels

SQUARE = config.Anchors(8.0)
NINE = config.Anchors(4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))
IOU = config.Assignment(method="max_iou", center_in_box=False)
FCOS = config.Assignment(method="fcos")
LITE = config.Assignment(method="fcos", center_sampling="nearest")
METHODS: dict[str, tuple[config.Anchors, config.Assignment]] = {
    "atss9": (SQUARE, config.Assignment(k=9)),
    "atss15": (SQUARE, config.Assignment(k=15)),
    "iou_a1": (SQUARE, IOU),
    "iou_a9": (NINE, IOU),
    "ssc": (SQUARE, FCOS),
    "center": (SQUARE, config.Assignment(method="fcos", center_sampling="radius", radius=1.5)),
}
OTHERS = {
    "iou, no low quality": (SQUARE, config.Assignment(method="max_iou", low_quality=False)),
    "iou, centre in box": (NINE, config.Assignment(method="max_iou")),
    "lite": (SQUARE, LITE),
    "topk": (SQUARE, config.Assignment(method="topk", k=5)),
    "atss, 9 anchors": (NINE, config.Assignment(k=4)),
    "atss, 9 anchors, k of them": (NINE, config.Assignment(k=13, k_counts="anchors")),
}
EVERY = METHODS | OTHERS


def run(
    boxes: Tensor, canvas_hw: tuple[int, int], anchors: config.Anchors, rule: config.Assignment, levels: int = 5
) -> Assigned:
    """Assignment of one image without padding."""
    mask = torch.ones(1, len(boxes), dtype=torch.bool)
    return build_assigner(rule)(boxes.unsqueeze(0), mask, pyramid_levels(canvas_hw, levels, anchors))


def half_strides(levels: list[Level]) -> list[Level]:
    """The points of the goldens `ssc` and `center` lie (i + ½) · s / 2 from the border on a grid of strides s.

    Evidently the strides of the implementation's head were left at its default of 4 … 64 where those goldens were
    made, with the grids of 8 … 128. The rule is the same; only where the points are differs.
    """
    return [v._replace(stride=v.stride // 2, pitch_xy=(v.stride // 2, v.stride // 2)) for v in levels]


@pytest.mark.parametrize("method", METHODS)
def test_equals_mmdet(shared_dir: Path, method: str) -> None:
    golden = np.load(shared_dir / "goldens" / "assign.npz")
    cases = [name.removesuffix("_size") for name in golden.files if name.endswith("_size")]
    assert len(cases) >= 8
    for case in cases:
        height, width = golden[f"{case}_size"].tolist()
        anchors, rule = METHODS[method]
        levels = pyramid_levels((height, width), 5, anchors)
        if rule.method == "fcos":
            levels = half_strides(levels)
        boxes = torch.from_numpy(golden[f"{case}_gt"]).unsqueeze(0)
        found = build_assigner(rule)(boxes, torch.ones(1, boxes.shape[1], dtype=torch.bool), levels)
        matched = found.matched[0].numpy()
        positive = np.flatnonzero(matched != NEGATIVE)
        order = np.argsort(golden[f"{case}_{method}_pos"])
        np.testing.assert_array_equal(positive, golden[f"{case}_{method}_pos"][order], f"case {case}")
        np.testing.assert_array_equal(matched[positive], golden[f"{case}_{method}_gt"][order], f"case {case}")
        ignored = np.flatnonzero(found.ignored[0].numpy()) if found.ignored is not None else []
        np.testing.assert_array_equal(ignored, np.sort(golden[f"{case}_{method}_ignore"]), f"case {case}")


def test_every_method_of_the_table_is_tested() -> None:
    assert {rule.method for _, rule in EVERY.values()} == set(ASSIGNERS)


@pytest.mark.parametrize("method", EVERY)
def test_no_boxes_leave_every_anchor_negative(method: str) -> None:
    anchors, rule = EVERY[method]
    levels = pyramid_levels((64, 96), 5, anchors)
    total = sum(level.anchors for level in levels)
    padded = random_scene((64, 96), 3, 0)[None].repeat(2, 1, 1)
    for boxes in (torch.zeros(2, 0, 4), padded):
        found = build_assigner(rule)(boxes, torch.zeros(boxes.shape[:2], dtype=torch.bool), levels)
        assert found.matched.shape == (2, total)
        assert found.matched.dtype == torch.int64
        assert (found.matched == NEGATIVE).all()
        assert found.ignored is None or not found.ignored.any()


@pytest.mark.parametrize("method", EVERY)
def test_a_batch_equals_its_images_one_by_one(method: str) -> None:
    """Padded rows repeat real boxes, so that a forgotten mask would show."""
    anchors, rule = EVERY[method]
    canvas_hw = (128, 192)
    scenes = [random_scene(canvas_hw, count, count) for count in (5, 1, 0, 9)]
    boxes, mask = random_scene(canvas_hw, 9, 99).repeat(4, 1, 1), torch.zeros(4, 9, dtype=torch.bool)
    for i, scene in enumerate(scenes):
        boxes[i, : len(scene)], mask[i, : len(scene)] = scene, True
    together = build_assigner(rule)(boxes, mask, pyramid_levels(canvas_hw, 5, anchors))
    assert (together.matched >= 0).any()
    for i, scene in enumerate(scenes):
        single = run(scene, canvas_hw, anchors, rule)
        assert torch.equal(together.matched[i], single.matched[0])
        if together.ignored is not None and single.ignored is not None:
            assert torch.equal(together.ignored[i], single.ignored[0])


def plain_nearest(boxes: Tensor, canvas_hw: tuple[int, int], anchors: config.Anchors, rule: config.Assignment) -> list:
    """Per box the flat indices of its candidates, from the full distance matrix of each level and a stable sort."""
    levels = pyramid_levels(canvas_hw, 5, anchors)
    points = grid_points(levels)
    found: list[list[int]] = []
    for box in boxes:
        chosen, first = [], 0
        for level in levels:
            away = points[first : first + level.anchors] - (box[:2] + box[2:]) / 2
            order = torch.sort(away.square().sum(dim=1), stable=True).indices
            count = rule.k * (len(level.sides) if rule.k_counts == "cells" else 1)
            chosen += (order[:count] + first).tolist()
            first += level.anchors
        found.append(chosen)
    return found


@pytest.mark.parametrize("canvas_hw", [(96, 128), (224, 64), (32, 32)])
@pytest.mark.parametrize("method", ["atss, 9 anchors", "atss, 9 anchors, k of them", "topk", "atss9"])
def test_atss_and_topk_equal_the_full_matrix(method: str, canvas_hw: tuple[int, int]) -> None:
    """As `reference.atss`, for any anchors: float32, since a comparison of an IoU with its mean hangs on last bits."""
    anchors, rule = EVERY[method]
    boxes = random_scene(canvas_hw, 7, 4)
    every = grid_anchors(pyramid_levels(canvas_hw, 5, anchors))
    owner, best = [NEGATIVE] * len(every), [-1.0] * len(every)
    for g, chosen in enumerate(plain_nearest(boxes, canvas_hw, anchors, rule)):
        overlap = torch.stack([reference.iou32(every[i], boxes[g]) for i in chosen])
        if rule.method == "atss":
            wanted = (overlap >= overlap.mean() + overlap.std()).tolist()
        else:
            top = torch.sort(overlap, descending=True, stable=True).indices[: rule.k].tolist()
            wanted = [i in top for i in range(len(chosen))]
        for i, value, want in zip(chosen, overlap.tolist(), wanted, strict=True):
            x, y = ((every[i, :2] + every[i, 2:]) / 2).tolist()
            x1, y1, x2, y2 = boxes[g].tolist()
            if want and min(x - x1, y - y1, x2 - x, y2 - y) > 0.01 and value > best[i]:
                owner[i], best[i] = g, value
    assert run(boxes, canvas_hw, anchors, rule).matched[0].tolist() == owner
    assert max(owner) >= 0 or canvas_hw == (32, 32)


@pytest.mark.parametrize("canvas_hw", [(96, 128), (224, 64), (320, 256)])
def test_lite_equals_plain_loops(canvas_hw: tuple[int, int]) -> None:
    boxes = random_scene(canvas_hw, 9, 2)
    levels = pyramid_levels(canvas_hw, 5, SQUARE)
    points = grid_points(levels).tolist()
    level_of = [i for i, level in enumerate(levels) for _ in range(level.anchors)]
    bounds = [0.0, 64.0, 128.0, 256.0, 512.0, math.inf]
    owner, smallest = [NEGATIVE] * len(points), [math.inf] * len(points)
    for g, chosen in enumerate(plain_nearest(boxes, canvas_hw, SQUARE, LITE)):
        x1, y1, x2, y2 = boxes[g].tolist()
        size = float((boxes[g, 2] - boxes[g, 0]) * (boxes[g, 3] - boxes[g, 1]))
        for i in chosen:
            sides = points[i][0] - x1, points[i][1] - y1, x2 - points[i][0], y2 - points[i][1]
            in_range = bounds[level_of[i]] <= max(sides) <= bounds[level_of[i] + 1]
            if min(sides) > 0 and in_range and size < smallest[i]:
                owner[i], smallest[i] = g, size
    assert run(boxes, canvas_hw, SQUARE, LITE).matched[0].tolist() == owner
    assert max(owner) >= 0


@pytest.mark.parametrize("center_in_box", [False, True])
@pytest.mark.parametrize("low_quality", [False, True])
def test_max_iou_equals_plain_loops(low_quality: bool, center_in_box: bool) -> None:
    canvas_hw, boxes = (96, 128), random_scene((96, 128), 6, 11)
    rule = config.Assignment(method="max_iou", low_quality=low_quality, center_in_box=center_in_box)
    found = run(boxes, canvas_hw, NINE, rule)
    assert found.ignored is not None
    anchors = grid_anchors(pyramid_levels(canvas_hw, 5, NINE))
    overlap = box_iou(anchors, boxes)
    highest = overlap.amax(dim=0)
    for n, row in enumerate(overlap):
        owner, best = int(row.argmax()), float(row.max())
        positive = best >= 0.5
        for g in range(len(boxes)):
            if low_quality and row[g] == highest[g]:
                owner, positive = g, True
        x, y = ((anchors[n, :2] + anchors[n, 2:]) / 2).tolist()
        x1, y1, x2, y2 = boxes[owner].tolist()
        if center_in_box and min(x - x1, y - y1, x2 - x, y2 - y) <= 0.01:
            positive = False
        assert found.matched[0, n] == (owner if positive else NEGATIVE), n
        assert found.ignored[0, n] == (not positive and 0.4 <= best < 0.5), n


def test_more_levels_than_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="6 levels need 5 limits"):
        run(random_scene((64, 64), 1, 0), (64, 64), SQUARE, FCOS, levels=6)
