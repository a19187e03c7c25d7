"""The ranking of a level's scores: its best anchors and classes, in one stage or two.

A level of 100 × 168 cells and 80 classes has 1.34 million scores, of which 1000 are wanted. Two stages find them
without ranking, or even computing, most of the scores: the best class of each anchor; the 1000 anchors whose best class
ranks highest; the 1000 best of these anchors' scores. An anchor with one of the 1000 best scores is among the 1000
anchors with the highest maximum, because every anchor before it has a score that ranks before its own. (Vectorised
sigmoids may round one number in two ways, so scores that differ in the last bit count as equal.)

Equal values have an order in ONNX, whose TopK takes the lower index first: the lower class; then, in two stages, the
anchor whose best class ranks higher; then the lower anchor. Torch's `topk` leaves open which of equal values it takes.

B images, L levels that are ranked together, C classes, n anchors of a level, k rows that are wanted of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.names import unknown_name

Combine = Literal["sqrt", "product"]
Score = Literal["class", "final"]


@dataclass(frozen=True)
class Scoring:
    """The final score of a detection where there is centerness, and the scores that are cut and ranked."""

    combine: Combine = "sqrt"  # √(class · centerness), or the product itself
    threshold_on: Score = "class"  # the score that is compared with the threshold
    rank_by: Score = "final"  # the score that the top 1000 of a level are taken by


class AnchorRange(NamedTuple):
    """The least and the most anchors that a level has on the canvases of a graph."""

    least: int
    most: int


class Ranked(NamedTuple):
    """The best rows of levels: each is a class of an anchor. All are [B, 1, L · k], a level's best first."""

    value: Tensor  # what they are ranked by, 0–1 (`final_scores` makes scores of it); 0: an unused row
    label: Tensor  # int64
    anchor: Tensor  # int64, among the anchors of all levels


def needs_two_stages(anchors: AnchorRange, classes: int, rows: int) -> bool:
    """Whether a first stage leaves out anything: not where all anchors fit, nor where an anchor has one score."""
    return classes > 1 and anchors.most > rows


def best_of_large_levels(
    logits: list[Tensor],
    qualities: list[Tensor],
    ranges: Sequence[AnchorRange],
    starts: Sequence[int],
    scoring: Scoring,
    threshold: float,
    rows: int,
) -> Ranked:
    """The best `rows` scores of each of L levels with more anchors than rows, in two stages.

    Per level: `logits` [B, 1, C, n], `qualities` [B, 1, 1, n] (centerness scores; an empty list without), and the
    number of anchors before its first, `starts`.
    """
    best, anchors, parts, quality = [], [], [], []
    for level, found in enumerate(logits):
        best_class = found.amax(dim=2, keepdim=True).float().sigmoid()  # [B, 1, 1, n]
        key = rank_values(best_class, qualities[level] if qualities else None, scoring, threshold)
        padded = ranges[level].least < rows
        value, anchor = (F.pad(key, (0, rows)) if padded else key).topk(rows, dim=3)  # [B, 1, 1, k]
        if padded:
            anchor = anchor.clamp(max=found.shape[3] - 1)
        best.append(value)
        parts.append(found.gather(3, anchor.expand(-1, -1, found.shape[2], -1)))
        anchors.append(anchor + starts[level])
        if qualities:
            quality.append(qualities[level].gather(3, anchor))
    limit: float | Tensor = threshold
    if any(level.least < rows for level in ranges):
        # Padding repeats an anchor. No score exceeds 1, so its rows stay unused.
        limit = torch.where(torch.cat(best, dim=1) > 0, threshold, 1.0)
    class_scores = torch.cat(parts, dim=1).float().sigmoid()  # [B, L, C, k]
    values = rank_values(class_scores, torch.cat(quality, dim=1) if quality else None, scoring, limit)
    value, index = values.flatten(2).topk(rows, dim=2)  # [B, L, k]
    anchor = torch.cat(anchors, dim=1).squeeze(2).gather(2, index % rows)
    return Ranked(*(part.flatten(1).unsqueeze(1) for part in (value, index // rows, anchor)))


def best_of_level(
    logits: Tensor,
    quality: Tensor | None,
    anchors: AnchorRange,
    start: int,
    scoring: Scoring,
    threshold: float,
    rows: int,
) -> Ranked:
    """The best `rows` scores of one level in one stage; all that its largest canvas has, where they are fewer.

    `logits` [B, 1, C, n], `quality` [B, 1, 1, n] or None; `start` is the number of anchors before the level's first.
    """
    classes = logits.shape[2]
    count = min(rows, anchors.most * classes)
    values = rank_values(logits.float().sigmoid(), quality, scoring, threshold)
    # Along the last axis: OpenVINO takes 170 ms for 22,000 scores along another, and less than 1 ms along the last.
    flat = values.flatten(2)  # [B, 1, C · n]
    value, index = (F.pad(flat, (0, count)) if anchors.least * classes < count else flat).topk(count, dim=2)
    return Ranked(value, index // values.shape[3], start + index % values.shape[3])


def rank_values(class_score: Tensor, quality: Tensor | None, scoring: Scoring, threshold: float | Tensor) -> Tensor:
    """What scores are ranked by, of class scores and qualities 0–1 (broadcast); 0 where the threshold isn't exceeded.

    Ranking by the final score √(class · centerness) goes by its square: the order is the same, and `final_scores` takes
    fewer square roots.
    """
    by_class = _is_class(scoring.rank_by, "scoring.rank_by")
    product = class_score if quality is None else class_score * quality
    if _is_class(scoring.threshold_on, "scoring.threshold_on") or quality is None:
        cut = class_score
    else:
        cut = _combined(product, scoring)
    return torch.where(cut > threshold, class_score if by_class else product, 0.0)


def final_scores(value: Tensor, quality: Tensor | None, scoring: Scoring) -> Tensor:
    """The final scores of `Ranked.value`; `quality` holds the rows' own qualities (None: the head has none)."""
    if quality is None:
        return value
    if _is_class(scoring.rank_by, "scoring.rank_by"):
        return torch.where(value > 0, _combined(value * quality, scoring), 0.0)
    return _combined(value, scoring)


def _combined(product: Tensor, scoring: Scoring) -> Tensor:
    """The final score of the product of class and centerness."""
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
