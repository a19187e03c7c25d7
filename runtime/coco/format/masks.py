"""Boxes and areas of masks, for entries that have no box: run-length codes as pycocotools writes them, and polygons.

A code is read here and not by pycocotools, whose C code trusts it: counts that end early are read beyond their end, and
a height of 0 is divided by. Nothing here takes memory or time in proportion to the size that a code claims.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

LARGEST_SIDE = 2**31  # px; heights and widths stay below
_LARGEST_COORDINATE = 1e30
_NUMBERS = {int, float}
# Each count has characters of five bits and a sixth that says whether more follow; no count needs more than seven.
_COUNTS = re.compile(rb"(?:[P-o]{0,6}[0-O])*")


def mask_box(segmentation: Any, size_hw: tuple[int, int] | None = None) -> tuple[float, float, float, float]:
    """The box (x, y, width, height) around a mask, px, as pycocotools' `toBbox` gives it; zeros around an empty one.

    Args:
        segmentation: a run-length code {"size": [height, width], "counts": text, bytes or list}, or polygons: a list
            of lists [x, y, x, y, …], or one such list.
        size_hw: height and width of the image; a code of another size is refused.

    The box of polygons spans their points and is not clipped. Raises ValueError, which says what is wrong, for
    anything else.

    """
    if isinstance(segmentation, dict):
        return _code_box(segmentation, size_hw)
    if isinstance(segmentation, list):
        return _polygon_box(segmentation)
    raise ValueError(f"a mask is a run-length code or a list of polygons, not {_short(segmentation)}")


def mask_area(code: dict[str, Any]) -> float:
    """The pixels in the mask of a run-length code, as pycocotools' `area` counts. Raises ValueError as `mask_box`."""
    starts, ends, _ = _runs(code)
    return float((ends - starts).sum())


def _polygon_box(polygons: list[Any]) -> tuple[float, float, float, float]:
    lists = polygons if any(isinstance(polygon, list) for polygon in polygons) else [polygons]
    points: list[tuple[float, float]] = []
    for polygon in lists:
        if not isinstance(polygon, list) or len(polygon) % 2 or not {*map(type, polygon)} <= _NUMBERS:
            raise ValueError(f"a polygon is a list of numbers [x, y, x, y, …], not {_short(polygon)}")
        if not all(-_LARGEST_COORDINATE <= value <= _LARGEST_COORDINATE for value in polygon):
            raise ValueError("a polygon has a coordinate that is not finite")
        points += zip(polygon[::2], polygon[1::2], strict=True)
    if not points:
        raise ValueError("the mask has no points")
    xs, ys = zip(*points, strict=True)
    left, top = float(min(xs)), float(min(ys))
    return left, top, max(xs) - left, max(ys) - top


def _code_box(code: dict[str, Any], size_hw: tuple[int, int] | None) -> tuple[float, float, float, float]:
    starts, ends, (height, width) = _runs(code)
    if size_hw is not None and (height, width) != tuple(size_hw):
        raise ValueError(f"the mask is {width}×{height}, the image {size_hw[1]}×{size_hw[0]}")
    if not len(starts):
        return 0.0, 0.0, 0.0, 0.0
    lasts = ends - 1
    left, right = int(starts.min() // height), int(lasts.max() // height)
    if (starts // height < lasts // height).any():  # a run that goes on in the next column touches both edges
        top, bottom = 0, height - 1
    else:
        top, bottom = int((starts % height).min()), int((lasts % height).max())
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def _runs(code: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Where the runs of pixels in a mask start and end, column by column, int64; and the mask's height and width."""
    size = code.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise ValueError(f"a run-length code needs its size [height, width], not {_short(size)}")
    height, width = (_whole(side, "side of a mask's size") for side in size)
    if not (1 <= height < LARGEST_SIDE and 1 <= width < LARGEST_SIDE):
        raise ValueError(f"the mask is of size {height}×{width}, which no image has")
    counts = _counts(code.get("counts"))
    if min(counts, default=0) < 0 or sum(counts) > height * width:
        raise ValueError(f"the mask's counts are not those of {width}×{height} pixels")
    borders = np.cumsum(np.array(counts, np.int64))  # a run outside the mask comes first, then one inside
    starts, ends = borders[:-1:2], borders[1::2]
    return starts[ends > starts], ends[ends > starts], (height, width)


def _counts(counts: Any) -> list[int]:
    if isinstance(counts, list):
        return [_whole(count, "count of a mask") for count in counts]
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if not isinstance(counts, bytes):
        raise ValueError(f"a run-length code needs counts, a text or a list, not {_short(counts)}")
    if not _COUNTS.fullmatch(counts):
        raise ValueError("the mask's counts are damaged; expected the text that pycocotools writes")
    return _from_text(counts)


def _from_text(text: bytes) -> list[int]:
    """The counts of a text: five bits a character, the lowest first; from the fourth on, less the count before last."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more characters of this count follow
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _whole(value: Any, what: str) -> int:
    """A number without a fraction as an integer."""
    if type(value) not in _NUMBERS or not -(2**63) < value < 2**63 or value != int(value):
        raise ValueError(f"{_short(value)} is no {what}; expected a whole number")
    return int(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
