"""Merges the detections of an image's tiles into those of the image."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from ..detections import Detections, covered_areas, empty_detections, select
from ..manifest import Thresholds
from ..nms import Measure, nms
from .grid import Window
from .settings import Merge, Tiles

# The overlap above which boxes of a class are one object (None: the threshold of the model's NMS), and its measure.
MEASURES: dict[Merge, tuple[float | None, Measure]] = {"nms": (None, "iou"), "ios": (0.5, "ios")}
NEAR = 0.01  # of a tile's side: a box that ends so near to a border is taken to be cut by it


def merge_tiles(
    parts: Sequence[tuple[Window, Detections]], image_hw: tuple[int, int], thresholds: Thresholds, tiles: Tiles
) -> Detections:
    """The detections of an image, in its pixels, from those of its windows, in theirs.

    A box that a tile's border cuts is left out where another tile shows more of the object (`seen_better`). Then
    class-wise NMS runs over the union: boxes of a class are one object if their intersection over union is above the
    threshold of the model's NMS, or, with `tiles.merge` "ios", if their intersection is more than half of the smaller
    one. Among equal scores the earlier part comes first.
    """
    if not parts:
        return empty_detections()
    windows = [window for window, _ in parts]
    moved = [
        Detections(found.boxes + np.array([w.x1, w.y1, w.x1, w.y1], np.float32), found.scores, found.classes)
        for w, found in parts
    ]
    nearby = _Nearby(windows)
    kept = [
        select(found, ~seen_better(found.boxes, window, nearby.around(window), image_hw))
        for window, found in zip(windows, moved, strict=True)
    ]
    union = Detections(
        np.concatenate([part.boxes for part in kept]),
        np.concatenate([part.scores for part in kept]),
        np.concatenate([part.classes for part in kept]),
    )
    boxes = covered_areas(union.boxes, thresholds)
    threshold, measure = MEASURES[tiles.merge]
    threshold = thresholds.nms_iou if threshold is None else threshold
    return select(union, nms(boxes, union.scores, union.classes, threshold, tiles.most, measure))


def seen_better(boxes: np.ndarray, window: Window, windows: Sequence[Window], image_hw: tuple[int, int]) -> np.ndarray:
    """Which boxes [n, 4], found in `window` and in pixels of the image, another window shows uncut, bool [n].

    Only boxes that end at a border of `window` inside the image are cut. The other window must be of the same size, for
    the whole image shows an object smaller, and the box must lie inside it and end at none of its inner borders.
    """
    better = np.zeros(len(boxes), bool)
    cut = np.flatnonzero(_is_cut(boxes, window, image_hw))
    if not len(cut):
        return better
    for other in windows:
        if other == window or other.size_hw != window.size_hw:
            continue
        inside = (boxes[cut, :2] >= [other.x1, other.y1]).all(1) & (boxes[cut, 2:] <= [other.x2, other.y2]).all(1)
        better[cut] |= inside & ~_is_cut(boxes[cut], other, image_hw)
    return better


class _Nearby:
    """Finds windows that overlap: of tens of thousands only those beside each other are compared."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._at: dict[tuple[int, int], list[Window]] = {}
        for window in windows:
            self._at.setdefault((window.y1, window.x1), []).append(window)
        self._ys, self._xs = (sorted({place[axis] for place in self._at}) for axis in (0, 1))

    def around(self, window: Window) -> list[Window]:
        """The windows, this one too, that begin less than a window's size away."""
        height, width = window.size_hw
        ys = self._ys[bisect_right(self._ys, window.y1 - height) : bisect_left(self._ys, window.y2)]
        xs = self._xs[bisect_right(self._xs, window.x1 - width) : bisect_left(self._xs, window.x2)]
        return [other for y in ys for x in xs for other in self._at.get((y, x), ())]


def _is_cut(boxes: np.ndarray, window: Window, image_hw: tuple[int, int]) -> np.ndarray:
    """Which boxes [n, 4] end at a border of the window that is no border of the image, bool [n]."""
    height, width = image_hw
    near_y, near_x = (NEAR * side for side in window.size_hw)
    return (
        ((window.x1 > 0) & (boxes[:, 0] < window.x1 + near_x))
        | ((window.y1 > 0) & (boxes[:, 1] < window.y1 + near_y))
        | ((window.x2 < width) & (boxes[:, 2] > window.x2 - near_x))
        | ((window.y2 < height) & (boxes[:, 3] > window.y2 - near_y))
    )
