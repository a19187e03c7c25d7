"""Matching detections, errors of dense maps, and plain greedy NMS.

Independent of the code under verification: nothing of the runtime's or the graph's NMS is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.detections import Detections


class MatchTolerance(NamedTuple):
    """When two detections of a class are the same: their boxes by IoU or by shift, and their scores."""

    iou: float  # boxes with a larger IoU are the same …
    shift: float  # … and boxes whose sides differ by at most this many px (an empty box has no IoU)
    score: float  # largest difference of scores


EXACT = MatchTolerance(iou=0.98, shift=0.1, score=1e-3)  # up to sums in another order


def count_unmatched(a: Detections, b: Detections, same: MatchTolerance = EXACT) -> int:
    """How many rows of `a` have no match in `b`."""
    n = min(len(a), len(b))
    alone = np.ones(len(a), bool)
    # Most rows match the row at the same index. Only for the others all of b is searched.
    alone[:n] = ~_same(a.boxes[:n], a.scores[:n], a.classes[:n], b.boxes[:n], b.scores[:n], b.classes[:n], same)
    for row in np.flatnonzero(alone):
        alone[row] = not _same(a.boxes[row], a.scores[row], a.classes[row], b.boxes, b.scores, b.classes, same).any()
    return int(alone.sum())


def count_differing_rows(a: Detections, b: Detections) -> int:
    """How many rows differ in box, score or class from the row at their index, to the last bit; missing rows count."""
    n = min(len(a), len(b))
    same = (a.classes[:n] == b.classes[:n]) & (a.scores[:n] == b.scores[:n])
    same &= (a.boxes[:n] == b.boxes[:n]).all(axis=1)
    return int(n - same.sum()) + abs(len(a) - len(b))


def greedy_nms(
    candidates: Detections,
    iou_threshold: float,
    max_detections: int,
    box_growth: tuple[float, float, float, float] | None = None,
) -> Detections:
    """Class-wise greedy NMS as in textbooks: from the best score down, keep boxes that no kept box of the class covers.

    `box_growth` is added to xyxy before areas are compared.
    """
    kept: list[int] = []
    areas = candidates.boxes if box_growth is None else candidates.boxes + np.array(box_growth, np.float32)
    covered = np.zeros(len(candidates), bool)
    for i in np.argsort(-candidates.scores, kind="stable"):
        if len(kept) == max_detections:
            break
        if not covered[i]:
            kept.append(int(i))
            overlap = _iou(areas[i], areas) > np.float32(iou_threshold)
            covered |= overlap & (candidates.classes == candidates.classes[i])
    return Detections(candidates.boxes[kept], candidates.scores[kept], candidates.classes[kept])


def max_relative_error(expected: np.ndarray, given: np.ndarray) -> float:
    """The largest |expected − given| / (1 + |expected|) of two maps; infinite where their shapes differ."""
    if expected.shape != given.shape:
        return float("inf")
    return float((np.abs(expected - given) / (1 + np.abs(expected))).max())


def relative_rms_error(maps: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Root mean square error of the worst level, divided by the standard deviation of all expected levels.

    `maps` are (expected, given) for each level. Infinite where shapes differ.
    """
    if any(expected.shape != given.shape for expected, given in maps):
        return float("inf")
    expected = np.concatenate([a.ravel() for a, _ in maps]).astype(np.float64)
    worst = max(float(np.mean((a.astype(np.float64) - b) ** 2)) for a, b in maps)
    return float(np.sqrt(worst) / max(expected.std(), 1e-9))


def _same(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    other_boxes: np.ndarray,
    other_scores: np.ndarray,
    other_classes: np.ndarray,
    same: MatchTolerance,
) -> np.ndarray:
    """Which broadcast rows are the same within the tolerance."""
    shift = np.abs(boxes - other_boxes).max(axis=-1, initial=0)
    same_box = (shift <= same.shift) | (_iou(boxes, other_boxes) > same.iou)
    return same_box & (classes == other_classes) & (np.abs(scores - other_scores) <= same.score)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of broadcast boxes [..., 4] xyxy, in their own precision; 0 where the union is empty."""
    width = np.maximum(np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]), 0)
    height = np.maximum(np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]), 0)
    shared = width * height
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    union = area_a + area_b - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)
