"""Postprocessing of dense outputs up to NMS: threshold, rank, take the top 1000 per level, decode, clip.

Validation and the exported graph share this code, so every shape follows from the canvas. With `limits` the number of
candidates is constant even where the canvas is not.
B images, C classes, A anchors of a cell, K candidates over all levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.manifest import Thresholds
from runtime.names import unknown_name

from ..geometry.anchors import FIRST_STRIDE, Anchors, anchor_sides, anchors_per_cell, pitch, strides
from ..geometry.box_coder import Regression, decode_apart
from ..geometry.boxes import Sides
from .detector import DenseOutputs

Combine = Literal["sqrt", "product"]
Score = Literal["class", "final"]


@dataclass(frozen=True)
class Scoring:
    """The final score of a detection where there is centerness, and the scores that are cut and ranked."""

    combine: Combine = "sqrt"  # √(class · centerness), or the product itself
    threshold_on: Score = "class"  # the score that is compared with the threshold
    rank_by: Score = "final"  # the score that the top 1000 of a level are taken by


@dataclass(frozen=True)
class Postprocess:
    """The parameters of the postprocessing."""

    anchors: Anchors
    regression: Regression
    scoring: Scoring
    thresholds: Thresholds


class CandidateLimit(NamedTuple):
    """How many candidates a level yields in a graph whose canvas isn't known beforehand."""

    rows: int
    padded: bool  # on some canvas the level has fewer scores than `rows`; unused rows take their place


def select_candidates(
    outputs: DenseOutputs,
    image_sizes: Tensor,
    rule: Postprocess,
    limits: list[CandidateLimit] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates for NMS: boxes float32 [B, K, 4] xyxy canvas px, scores [B, K], classes int32 [B, K].

    They are the best of each level, one level after the other, best score first. `rule.scoring` says how a score is
    made of class and centerness, and what is compared with the threshold and ranked. Boxes are clipped to `image_sizes`
    int32 [B, 2] (height, width). Unused rows have score 0, class −1 and box 0. K = Σ_l min(1000, cells · A · C), where
    1000 is the thresholds' `candidates_per_level`; with `limits`, one per level, K is the sum of their rows.
    """
    # Canvas sides are multiples of the backbone's coarsest stride, so the finest level's map has their size.
    canvas_hw = tuple(side * FIRST_STRIDE for side in outputs.class_logits[0].shape[2:])
    found = []
    for level, stride in enumerate(strides(len(outputs.class_logits))):
        rows, columns = outputs.class_logits[level].shape[2:]
        anchors = _LevelAnchors(
            stride,
            columns,
            (pitch(rule.anchors, stride, canvas_hw[1], columns), pitch(rule.anchors, stride, canvas_hw[0], rows)),
        )
        found.append(
            _level_candidates(
                outputs.class_logits[level],
                outputs.box_regression[level],
                outputs.centerness[level] if outputs.centerness else None,
                anchors,
                rule,
                limits[level] if limits is not None else None,
            )
        )
    x, y, width, height, pixels, codes, scores, classes = (
        torch.cat(parts, dim=1) for parts in zip(*found, strict=True)
    )
    # Boxes are decoded once, after the levels are joined, and coordinate by coordinate: a compiler that fuses one join
    # into the next writes out every path through them (TensorRT for RTX made kernels of 35 MB for a fixed canvas).
    sides = decode_apart(x, y, width, height, pixels, codes, rule.regression)
    return _clip(sides, classes >= 0, image_sizes, rule.thresholds), scores, classes


class _LevelAnchors(NamedTuple):
    """The grid of a level's cells; the integers may be symbols while a graph is traced."""

    stride: int
    columns: int
    pitch_xy: tuple[int, int]


def _level_candidates(
    class_logits: Tensor,
    box_regression: Tensor,
    centerness: Tensor | None,
    grid: _LevelAnchors,
    rule: Postprocess,
    limit: CandidateLimit | None,
) -> tuple[Tensor, ...]:
    """A level's candidates: centre, size and stride of their anchors, codes, scores, classes."""
    per_cell = anchors_per_cell(rule.anchors)
    class_score = _rows(class_logits, per_cell).sigmoid()  # [B, anchors, C]
    num_classes = class_score.shape[2]
    quality = _rows(centerness, per_cell).sigmoid() if centerness is not None else None  # [B, anchors, 1]
    score = _final_score(class_score, quality, rule.scoring)
    cut = class_score if _is_class(rule.scoring.threshold_on, "scoring.threshold_on") else score
    by_class = _is_class(rule.scoring.rank_by, "scoring.rank_by")
    ranked_by = class_score if by_class else score
    rank = torch.where(cut > rule.thresholds.score, ranked_by, 0.0).flatten(1)  # [B, anchors · C]
    if limit is None:
        count = min(rule.thresholds.candidates_per_level, rank.shape[1])
    else:
        count = limit.rows
        if limit.padded:
            rank = F.pad(rank, (0, count))
    best, index = rank.topk(count, dim=1)
    # Integer division: the floor mode of torch.div goes through float32 and is wrong above 2^24.
    anchor = index // num_classes
    label = index - anchor * num_classes
    if limit is not None and limit.padded:
        anchor = anchor.clamp(max=class_score.shape[1] - 1)
    used = best > 0
    if by_class and quality is not None:
        best = torch.where(used, _final_score(best, quality.squeeze(2).gather(1, anchor), rule.scoring), 0.0)
    codes = _rows(box_regression, per_cell).gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
    stride = torch.full_like(best, grid.stride)
    return *_anchors(anchor, grid, rule.anchors), stride, codes, best, torch.where(used, label, -1).int()


def _final_score(class_score: Tensor, quality: Tensor | None, scoring: Scoring) -> Tensor:
    """The final score of class score and centerness, both in 0–1; without centerness the class score itself."""
    if quality is None:
        return class_score
    product = class_score * quality
    match scoring.combine:
        case "sqrt":
            return product.sqrt()
        case "product":
            return product
        case _:
            unknown_name(scoring.combine, "scoring.combine", Combine)


def _is_class(score: Score, setting: str) -> bool:
    match score:
        case "class":
            return True
        case "final":
            return False
        case _:
            unknown_name(score, setting, Score)


def _anchors(anchor: Tensor, grid: _LevelAnchors, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, y, width and height [B, K] px of anchors given by their index in the level, int64 [B, K]."""
    sides = anchor_sides(anchors, grid.stride)
    cell = anchor // len(sides)
    row = cell // grid.columns
    column = cell - row * grid.columns
    x = (column.float() + anchors.center) * grid.pitch_xy[0]
    y = (row.float() + anchors.center) * grid.pitch_xy[1]
    kind = anchor - cell * len(sides)
    width, height = (torch.tensor(side, device=anchor.device)[kind] for side in zip(*sides, strict=True))
    return x, y, width, height


def _rows(maps: Tensor, anchors: int) -> Tensor:
    """[B, anchors · channels, h, w] → float32 [B, h · w · anchors, channels]: half precision ends here."""
    rows = maps.permute(0, 2, 3, 1).flatten(1, 2)
    return rows.unflatten(2, (anchors, -1)).flatten(1, 2).float()


def _clip(sides: Sides, used: Tensor, image_sizes: Tensor, thresholds: Thresholds) -> Tensor:
    """Boxes [B, K, 4] from sides, clipped to `image_sizes` [B, 2] (height, width); 0 in unused rows."""
    height, width = image_sizes.to(sides[0].dtype).unsqueeze(1).unbind(-1)  # [B, 1] each
    if thresholds.legacy_plus_one:
        height, width = height - 1, width - 1  # a box ends with the last pixel that it includes
    shifts = thresholds.decoded_shift or (0.0, 0.0, 0.0, 0.0)
    clipped = [
        torch.where(used, torch.minimum((side + shift if shift else side).clamp(min=0), bound), 0.0)
        for side, shift, bound in zip(sides, shifts, (width, height, width, height), strict=True)
    ]
    return torch.stack(clipped, dim=-1)
