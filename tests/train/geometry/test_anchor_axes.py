"""Anchors given by the axes of their levels, against the grid of the same canvas."""

from __future__ import annotations

import pytest
import torch

from train.geometry.anchors import (
    Anchors,
    LevelAxes,
    anchor_coordinates,
    anchor_grid,
    level_axes,
    pyramid_levels,
)

ONE = Anchors()
NINE = Anchors(scale=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0), center=0.0)
WHOLE = Anchors(scale=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0), whole_pixels=True)


@pytest.mark.parametrize("anchors", [ONE, NINE, WHOLE], ids=["one", "nine", "whole pixels"])
@pytest.mark.parametrize("canvas_hw", [(64, 96), (160, 224), (800, 1088)])
def test_they_are_the_anchors_of_the_grid_in_its_order(anchors: Anchors, canvas_hw: tuple[int, int]) -> None:
    levels = pyramid_levels(canvas_hw, 5, anchors)
    found, grid = anchor_coordinates(level_axes(level) for level in levels), anchor_grid(levels)
    torch.testing.assert_close(torch.stack([found.x[0], found.y[0]], dim=1), grid.points, rtol=0, atol=0)
    torch.testing.assert_close(found.stride[0], grid.strides, rtol=0, atol=0)
    sides = torch.stack([found.width[0], found.height[0]], dim=1)
    torch.testing.assert_close(sides, grid.boxes[:, 2:] - grid.boxes[:, :2], rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("anchors", [ONE, NINE], ids=["one", "nine"])
@pytest.mark.parametrize("canvas_hw", [(64, 64), (96, 160), (800, 1088)])
def test_a_smaller_canvas_has_the_first_of_a_larger_ones(anchors: Anchors, canvas_hw: tuple[int, int]) -> None:
    kinds = anchors.scales_per_octave * len(anchors.ratios)
    levels, largest = pyramid_levels(canvas_hw, 5, anchors), pyramid_levels((1344, 1344), 5, anchors)
    cut = [
        LevelAxes(axes.columns[:, :, : level.columns * kinds], axes.rows[:, : level.rows])
        for level, axes in zip(levels, map(level_axes, largest), strict=True)
    ]
    for one, other in zip(anchor_coordinates(cut), anchor_coordinates(map(level_axes, levels)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
