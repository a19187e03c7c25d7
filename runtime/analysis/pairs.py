"""Pairs of boxes of an image that overlap, and greedy matching of them."""

from __future__ import annotations

import numpy as np
from pycocotools import mask


def overlapping(
    boxes: np.ndarray,
    images: np.ndarray,
    others: np.ndarray,
    other_images: np.ndarray,
    least: float,
    crowd: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of two boxes of one image with an IoU of `least` (above 0) or more: rows of both, and the IoU.

    Boxes are x, y, width, height; those of an image adjoin, and images rise on both sides. The IoU with a box of
    `crowd` is the part of the first box that it covers, as COCO defines it. Pairs are sorted by the first row, then by
    the second.
    """
    common = np.intersect1d(images, other_images)
    firsts, lasts = (np.searchsorted(images, common, side).tolist() for side in ("left", "right"))
    other_firsts, other_lasts = (np.searchsorted(other_images, common, side).tolist() for side in ("left", "right"))
    flags = np.zeros(len(others), np.uint8) if crowd is None else crowd.astype(np.uint8)
    none = np.empty(0, np.int64)
    rows, other_rows, ious = [none], [none], [np.empty(0)]
    for first, last, other, other_last in zip(firsts, lasts, other_firsts, other_lasts, strict=True):
        iou = mask.iou(boxes[first:last], others[other:other_last], flags[other:other_last])
        near = np.nonzero(iou >= least)
        rows.append(near[0] + first)
        other_rows.append(near[1] + other)
        ious.append(iou[near])
    return np.concatenate(rows), np.concatenate(other_rows), np.concatenate(ious)


def match_greedily(
    rows: np.ndarray, others: np.ndarray, count: int, other_count: int, reusable: np.ndarray | None = None
) -> np.ndarray:
    """Match each row with at most one of the others: pairs in their order, each where both sides are free.

    Returns the match of each row, int64 [count], −1 for none. What `reusable` (bool [other_count]) marks is never
    taken: it can be matched several times.
    """
    match = [-1] * count
    free = [True] * other_count
    again = [False] * other_count if reusable is None else reusable.tolist()
    for row, other in zip(rows.tolist(), others.tolist(), strict=True):
        if match[row] < 0 and free[other]:
            match[row] = other
            free[other] = again[other]
    return np.array(match, np.int64)


def first_of_each(sorted_rows: np.ndarray) -> np.ndarray:
    """Where each value of sorted numbers stands first, int64."""
    return np.flatnonzero(np.diff(sorted_rows, prepend=-1))
