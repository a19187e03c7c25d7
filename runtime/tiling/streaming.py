"""Tiles of an image that is read in strips, so that memory never holds the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from ..images import Decoded, whole
from ..images.preprocess import plan, reduction
from ..images.strips import StripImage
from ..manifest import Preprocess
from .grid import Window, whole_window


def streamed_views(
    image: StripImage, rows: Sequence[Sequence[Window]], pre: Preprocess | None
) -> Iterator[tuple[Window, Decoded]]:
    """The tiles of `rows`, row by row; with `pre` also the whole image, as `pre` resizes it, at last.

    Memory holds the strips that a row of tiles touches. The pixels of the tiles are copies.
    """
    height, width = image.size_hw
    reduced = None if pre is None else _Reduced(image.size_hw, pre)
    strips = image.strips()
    held = np.empty((0, width, 3), np.uint8)  # the rows of the image from `top` on
    top = 0
    for row in rows:
        y1, y2 = row[0].y1, row[0].y2
        parts = [held[max(0, y1 - top) :]]
        top = max(y1, top)
        bottom = top + len(parts[0])
        while bottom < y2:
            strip = next(strips)
            if reduced is not None:
                reduced.add(strip)
            parts.append(strip[max(0, top - bottom) :])
            bottom += len(strip)
        held = parts[0] if len(parts) == 1 else np.concatenate(parts)
        for window in row:
            yield window, whole(held[y1 - top : y2 - top, window.x1 : window.x2].copy())
    if reduced is not None:  # the last row of tiles ends with the image, so all strips were added
        yield whole_window(image.size_hw), Decoded(reduced.pixels(), (height, width))


class _Reduced:
    """The image at the size that its resize needs, made strip by strip.

    Where the preprocessing averages blocks of pixels first, blocks are averaged here, with the same result. Otherwise
    the rows and columns between which the resize interpolates are kept, and interpolated at the end.
    """

    def __init__(self, size_hw: tuple[int, int], pre: Preprocess) -> None:
        self._wanted = plan(size_hw, pre).resized_hw
        self._by = reduction(size_hw, self._wanted) if pre.divide_large else 1
        self._rows = _between(size_hw[0], self._wanted[0])
        self._columns = _between(size_hw[1], self._wanted[1])
        self._parts: list[np.ndarray] = []
        self._rest: np.ndarray | None = None  # rows that do not fill a block yet
        self._top = 0

    def add(self, strip: np.ndarray) -> None:
        """Take the next rows of the image."""
        if self._by > 1:
            rows = strip if self._rest is None else np.concatenate([self._rest, strip])
            full = len(rows) // self._by * self._by
            if full:
                size = (rows.shape[1] // self._by, full // self._by)
                self._parts.append(cv2.resize(rows[:full], size, interpolation=cv2.INTER_AREA))
            self._rest = rows[full:].copy()
            return
        first, self._top = self._top, self._top + len(strip)
        wanted = np.unique(self._rows[:2].astype(np.int64))
        inside = wanted[(wanted >= first) & (wanted < self._top)] - first
        columns = np.unique(self._columns[:2].astype(np.int64))
        self._parts.append(strip[inside][:, columns])

    def pixels(self) -> np.ndarray:
        """The reduced image, uint8 [h, w, 3]."""
        kept = np.concatenate(self._parts)
        if self._by > 1:
            return kept
        return (
            np.round(_interpolated(_interpolated(kept, self._rows).swapaxes(0, 1), self._columns))
            .swapaxes(0, 1)
            .astype(np.uint8)
        )


def _between(length: int, wanted: int) -> np.ndarray:
    """For each of `wanted` samples of a bilinear resize: the two rows beside it, and the second one's share. [3, n]."""
    place = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
    first = np.floor(place)
    return np.stack([first, np.minimum(first + 1, length - 1), place - first])


def _interpolated(kept: np.ndarray, between: np.ndarray) -> np.ndarray:
    """The samples, float32, along the first axis of the rows that were kept."""
    known = np.unique(between[:2].astype(np.int64))
    first, second = (np.searchsorted(known, one.astype(np.int64)) for one in between[:2])
    share = between[2].astype(np.float32)[:, None, None]
    return kept[first] * (1 - share) + kept[second] * share
