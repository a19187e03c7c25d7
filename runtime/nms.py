"""Intersection over union and greedy class-wise NMS on the host, in NumPy."""

from __future__ import annotations

from typing import Literal

import numpy as np

_PIECE = 256  # candidates looked at together

# What the intersection of two boxes is divided by: the area of their union, or that of the smaller box.
Measure = Literal["iou", "ios"]


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes a [n, 4] and b [m, 4], xyxy → float32 [n, m]; 0 if both have no area."""
    return overlap_matrix(a, b, "iou")


def overlap_matrix(a: np.ndarray, b: np.ndarray, measure: Measure) -> np.ndarray:
    """How far boxes a [n, 4] and b [m, 4], xyxy, overlap → float32 [n, m]; 0 where the divisor has no area."""
    a, b = np.asarray(a, np.float32).reshape(-1, 4), np.asarray(b, np.float32).reshape(-1, 4)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # [n, m, 2]
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap_wh = np.clip(bottom_right - top_left, 0, None)
    intersection = overlap_wh[..., 0] * overlap_wh[..., 1]  # [n, m]
    return _ratio(intersection, _area(a)[:, None], _area(b)[None, :], measure)


def nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    iou_threshold: float,
    max_detections: int,
    measure: Measure = "iou",
) -> np.ndarray:
    """Greedy class-wise non-maximum suppression: indices of the kept boxes, best score first, int64 [≤ max_detections].

    boxes [n, 4] xyxy, scores [n], classes [n]. In order of descending score (equal scores: lower index first), a box is
    kept unless a kept box of its class overlaps it with IoU > `iou_threshold`; or with another `measure` above it.
    """
    boxes, classes = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(classes)
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    kept: list[int] = []
    # In pieces, best first: usually enough boxes are kept long before the last of thousands of candidates is reached.
    for first in range(0, len(order), _PIECE):
        if len(kept) >= max_detections:
            break
        piece = order[first : first + _PIECE]
        overlaps = overlap_matrix(boxes[piece], boxes[kept], measure) > iou_threshold  # [n, kept so far]
        suppressed = (overlaps & (classes[piece][:, None] == classes[kept][None])).any(1)
        kept += _greedy(boxes, classes, piece[~suppressed], iou_threshold, max_detections - len(kept), measure)
    return np.array(kept, np.int64)


def _greedy(
    boxes: np.ndarray, classes: np.ndarray, order: np.ndarray, iou_threshold: float, most: int, measure: Measure
) -> list[int]:
    """NMS among the boxes at `order`, best first. The loop runs over kept boxes only: suppressed boxes are removed."""
    boxes, classes = boxes[order], classes[order]
    areas = _area(boxes)
    kept: list[int] = []
    while len(order) and len(kept) < most:
        kept.append(int(order[0]))
        overlap_wh = np.minimum(boxes[0, 2:], boxes[1:, 2:]) - np.maximum(boxes[0, :2], boxes[1:, :2])
        np.maximum(overlap_wh, 0, out=overlap_wh)
        intersection = overlap_wh[:, 0] * overlap_wh[:, 1]
        overlap = _ratio(intersection, areas[0], areas[1:], measure)
        stays = np.flatnonzero(~(overlap > iou_threshold) | (classes[1:] != classes[0])) + 1
        order, boxes, classes, areas = order[stays], boxes[stays], classes[stays], areas[stays]
    return kept


def _ratio(intersection: np.ndarray, area_a: np.ndarray, area_b: np.ndarray, measure: Measure) -> np.ndarray:
    """The intersections over what `measure` divides by."""
    divisor = np.minimum(area_a, area_b) if measure == "ios" else area_a + area_b - intersection
    return np.divide(intersection, divisor, out=np.zeros_like(intersection), where=divisor > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    wh = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return wh[:, 0] * wh[:, 1]
