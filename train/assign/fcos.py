"""Positives by FCOS's spatial and scale constraints (arXiv 1904.01355, section 3.2), with its center sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..geometry.anchors import AnchorGrid, Level, anchor_grid
from ..geometry.boxes import area, centers
from .atss import KCounts, best_box, nearest_on_all_levels
from .types import NEGATIVE, Assigned


def fcos(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    level_limits: tuple[float, ...],
    grid: AnchorGrid | None = None,
) -> Assigned:
    """Assign the points of `levels` to boxes [B, G, 4] xyxy px; `gt_mask` bool [B, G] says which boxes are real.

    A point inside a box is positive for the box if its largest distance to a side is in its level's range.
    `level_limits` are the bounds between the levels' ranges in px, inclusive. Of several boxes the smallest gets the
    point, and of equal boxes the lower index.
    """
    return _constrained(gt_boxes, gt_mask, levels, level_limits, math.inf, grid)


def fcos_radius(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    level_limits: tuple[float, ...],
    radius: float,
    grid: AnchorGrid | None = None,
) -> Assigned:
    """As `fcos`, but only points within `radius` strides of the box's centre, on each axis, are positive."""
    return _constrained(gt_boxes, gt_mask, levels, level_limits, radius, grid)


def fcos_nearest(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    level_limits: tuple[float, ...],
    k: int,
    k_counts: KCounts = "cells",
    grid: AnchorGrid | None = None,
) -> Assigned:
    """As `fcos`, but only the k points nearest to the box's centre on each level are candidates.

    The ATSS paper's "lite" version (arXiv 1912.02424, section 4.2). Like ATSS it builds no [points × boxes] matrix.
    """
    index, anchors = nearest_on_all_levels(gt_boxes, levels, k, k_counts, grid)  # [B, G, K]
    low, high = _ranges(levels, level_limits, gt_boxes.device)
    positive = _in_range(centers(anchors), gt_boxes.unsqueeze(2), low[index], high[index]) & gt_mask.unsqueeze(-1)
    smaller = -area(gt_boxes).unsqueeze(-1).expand_as(index)
    return Assigned(best_box(index, smaller, positive, sum(level.anchors for level in levels)))


def _constrained(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    level_limits: tuple[float, ...],
    radius: float,
    grid: AnchorGrid | None,
) -> Assigned:
    _, points, strides, _ = anchor_grid(levels, gt_boxes.device) if grid is None else grid
    low, high = _ranges(levels, level_limits, gt_boxes.device)
    reach = radius * strides
    if gt_boxes.shape[1] == 0:
        return Assigned(torch.full((len(gt_boxes), len(points)), NEGATIVE, device=gt_boxes.device))
    matched = []
    # Image by image: the [points × boxes] matrices of a whole batch would take gigabytes.
    for boxes, mask in zip(gt_boxes.unbind(), gt_mask.unbind(), strict=True):
        positive = _in_range(points, boxes.unsqueeze(1), low, high) & mask.unsqueeze(1)  # [G, N]
        if radius < math.inf:
            away = (points - centers(boxes).unsqueeze(1)).abs().amax(dim=-1)
            positive = positive & (away < reach)
        smallest, box = torch.where(positive, area(boxes).unsqueeze(1), math.inf).min(dim=0)
        matched.append(torch.where(smallest < math.inf, box, NEGATIVE))
    return Assigned(torch.stack(matched))


def _in_range(points: Tensor, boxes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Bool [...]: the point [..., 2] is in the box [..., 4] and its largest distance to a side in low … high."""
    distances = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)
    largest = distances.amax(dim=-1)
    return (distances.amin(dim=-1) > 0) & (largest >= low) & (largest <= high)


def _ranges(levels: list[Level], level_limits: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The lower and upper bound of each anchor's level, two [N] px. The last level has no upper bound."""
    bounds = [0.0, *level_limits[: len(levels) - 1], math.inf]
    if len(bounds) != len(levels) + 1:
        raise ValueError(f"{len(levels)} levels need {len(levels) - 1} limits, not {len(level_limits)}")
    counts = [level.anchors for level in levels]
    low = torch.cat([torch.full((n,), b, device=device) for n, b in zip(counts, bounds[:-1], strict=True)])
    high = torch.cat([torch.full((n,), b, device=device) for n, b in zip(counts, bounds[1:], strict=True)])
    return low, high
