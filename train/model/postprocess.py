"""Postprocessing of dense outputs up to NMS: threshold, rank, take the top 1000 per level, decode, clip.

Validation and the exported graph share this code, so every shape follows from the canvas. With `Canvases` the number
of candidates is constant even where the canvas is not. Its steps are few and wide, because each is a launch on a GPU:
large levels are ranked together, and all that follows the ranking is done once for the candidates of all levels.
B images, C classes, A anchors of a cell, n anchors of a level, N of all levels, K candidates of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.manifest import Thresholds

from ..geometry.anchors import (
    FIRST_STRIDE,
    Anchors,
    Level,
    LevelAxes,
    anchor_coordinates,
    anchor_sides,
    anchors_per_cell,
    level_axes,
    pitch,
    strides,
)
from ..geometry.box_coder import Regression, decode_apart
from .detector import DenseOutputs
from .ranking import AnchorRange, Scoring, best_of_large_levels, best_of_level, final_scores, needs_two_stages


@dataclass(frozen=True)
class Postprocess:
    """The parameters of the postprocessing."""

    anchors: Anchors
    regression: Regression
    scoring: Scoring
    thresholds: Thresholds


class Canvases(NamedTuple):
    """What a graph knows beforehand of the canvases that it takes."""

    ranges: Sequence[AnchorRange]  # of the levels
    axes: Sequence[LevelAxes] | None  # of the levels of the largest canvas, where a smaller one's are the first of them


def select_candidates(
    outputs: DenseOutputs,
    image_sizes: Tensor,
    rule: Postprocess,
    canvases: Canvases | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates for NMS: boxes float32 [B, K, 4] xyxy canvas px, scores [B, K], classes int32 [B, K].

    They are the best of each level, one level after the other, best score first. `rule.scoring` says how a score is
    made of class and centerness, and what is compared with the threshold and ranked. Boxes are clipped to `image_sizes`
    int32 [B, 2] (height, width). Unused rows have score 0, class −1 and box 0. K = Σ_l min(1000, n · C), where 1000 is
    the thresholds' `candidates_per_level`. A graph gives the `canvases` that it takes: K follows from the most anchors
    of each level, and rows that a small canvas can't fill are unused.
    """
    kinds, rows = anchors_per_cell(rule.anchors), rule.thresholds.candidates_per_level
    logits = [_by_anchor(level, kinds) for level in outputs.class_logits]  # [B, 1, C, n]
    qualities = [_by_anchor(level, kinds).float().sigmoid() for level in outputs.centerness]  # [B, 1, 1, n]
    anchors = [level.shape[3] for level in logits]
    starts = [sum(anchors[:level]) for level in range(len(anchors))]
    ranges = canvases.ranges if canvases is not None else [AnchorRange(count, count) for count in anchors]
    scoring, threshold = rule.scoring, rule.thresholds.score
    large = sum(needs_two_stages(count, logits[0].shape[2], rows) for count in ranges)  # the first: levels shrink
    found = []
    if large:
        parts = logits[:large], qualities[:large], ranges[:large], starts[:large]
        found.append(best_of_large_levels(*parts, scoring, threshold, rows))
    for level in range(large, len(logits)):
        quality = qualities[level] if qualities else None
        found.append(best_of_level(logits[level], quality, ranges[level], starts[level], scoring, threshold, rows))
    value, label, anchor = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))  # [B, 1, K]
    row = anchor.transpose(1, 2)  # [B, K, 1]
    axes = _axes(outputs, rule.anchors, canvases.axes if canvases is not None else None)
    boxes = _boxes(outputs, image_sizes, rule, axes).gather(1, row.expand(-1, -1, 4))
    own = torch.cat([level.squeeze(1) for level in qualities], dim=2).gather(2, anchor) if qualities else None
    used = value > 0
    scores, classes = final_scores(value, own, scoring), torch.where(used, label, -1).int()
    return torch.where(used.transpose(1, 2), boxes, 0.0), scores.squeeze(1), classes.squeeze(1)


def _by_anchor(level: Tensor, kinds: int) -> Tensor:
    """[B, A · channels, h, w] → [B, 1, channels, n]. With one anchor a cell nothing is copied."""
    if kinds == 1:
        return level.flatten(2).unsqueeze(1)
    return level.flatten(2).unflatten(1, (kinds, -1)).permute(0, 2, 3, 1).flatten(2).unsqueeze(1)


def _axes(outputs: DenseOutputs, anchors: Anchors, largest: Sequence[LevelAxes] | None) -> list[LevelAxes]:
    """The axes of the levels of these maps: the first of those of the largest canvas, if they are given."""
    kinds, maps = anchors_per_cell(anchors), outputs.class_logits
    if largest is not None:
        return [
            LevelAxes(axes.columns[:, :, : level.shape[3] * kinds], axes.rows[:, : level.shape[2]])
            for axes, level in zip(largest, maps, strict=True)
        ]
    # Canvas sides are multiples of the backbone's coarsest stride, so the finest level's map has their size.
    height, width = (side * FIRST_STRIDE for side in maps[0].shape[2:])
    found = []
    for stride, level in zip(strides(len(maps)), maps, strict=True):
        rows, columns = level.shape[2:]
        pitch_xy = pitch(anchors, stride, width, columns), pitch(anchors, stride, height, rows)
        sides = anchor_sides(anchors, stride)
        found.append(level_axes(Level(stride, rows, columns, sides, pitch_xy, anchors.center), maps[0].device))
    return found


def _boxes(outputs: DenseOutputs, image_sizes: Tensor, rule: Postprocess, axes: list[LevelAxes]) -> Tensor:
    """The box of every anchor, [B, N, 4] xyxy px in float32, clipped to `image_sizes`.

    All are decoded, not the candidates alone: this needs no ranking, so that it happens beside it, and the anchors of a
    known canvas are constants.
    """
    kinds, grid = anchors_per_cell(rule.anchors), anchor_coordinates(axes)
    codes = torch.cat([_by_anchor(level, kinds).squeeze(1) for level in outputs.box_regression], dim=2).float()
    sides = decode_apart(*grid[:4], grid.stride, codes.split(1, dim=1), rule.regression)  # [B, 1, N] each
    boxes = torch.cat(sides, dim=1)  # [B, 4, N]
    if rule.thresholds.decoded_shift is not None:
        boxes = boxes + boxes.new_tensor(rule.thresholds.decoded_shift).unsqueeze(1)
    height, width = image_sizes.to(boxes.dtype).split(1, dim=1)  # [B, 1] each
    bounds = torch.cat((width, height, width, height), dim=1).unsqueeze(2)  # [B, 4, 1]
    if rule.thresholds.legacy_plus_one:
        bounds = bounds - 1  # a box ends with the last pixel that it includes
    return torch.minimum(boxes.clamp(min=0), bounds).transpose(1, 2)
