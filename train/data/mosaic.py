"""Mosaics: four images on one canvas (YOLOv4, arXiv 2004.10934), each in a corner that meets the others at one point.

Each image is augmented as if it were alone, at a smaller size, and shows a random window of at most its corner's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .augment import Augment, Sample

PARTS = 4
MARGIN = 0.25  # the corners meet at least this share of the canvas's sides away from its border


class Corner(NamedTuple):
    """A rectangle of the canvas, px, and which of its sides lie on the point where the corners meet."""

    top: int
    left: int
    height: int
    width: int
    to_bottom: bool  # the point is at the rectangle's bottom
    to_right: bool


class Layout(NamedTuple):
    """The random choices of a mosaic that are made before its images are known."""

    meet_yx: tuple[float, float]  # shares of the canvas's height and width
    scales: tuple[float, ...]  # factors of the four images' shorter sides
    places: tuple[float, ...]  # of the three other images in the epoch, 0–1


def draw_layout(settings: Augment, rng: np.random.Generator) -> Layout | None:
    """The layout of a sample's mosaic, or None for a sample that is no mosaic."""
    if rng.random() >= settings.mosaic:
        return None
    y, x = rng.uniform(MARGIN, 1 - MARGIN, 2).tolist()
    return Layout((y, x), tuple(rng.uniform(*settings.mosaic_scale, PARTS).tolist()), tuple(rng.random(PARTS - 1)))


def corners(canvas_hw: tuple[int, int], layout: Layout) -> list[Corner]:
    """The four corners of a canvas in the order of reading; of a canvas of 1 px a side, some have no pixel."""
    height, width = canvas_hw
    y, x = (round(side * share) for side, share in zip(canvas_hw, layout.meet_yx, strict=True))
    return [
        Corner(0, 0, y, x, to_bottom=True, to_right=True),
        Corner(0, x, y, width - x, to_bottom=True, to_right=False),
        Corner(y, 0, height - y, x, to_bottom=False, to_right=True),
        Corner(y, x, height - y, width - x, to_bottom=False, to_right=False),
    ]


def join_parts(
    canvas_hw: tuple[int, int], where: Sequence[Corner], parts: Sequence[Sample], pad_value: tuple[int, int, int]
) -> Sample:
    """Lay images, each no larger than its corner, against the point where the corners meet; the rest is padded."""
    image = np.empty((*canvas_hw, 3), np.uint8)
    image[:] = pad_value
    boxes = []
    for corner, part in zip(where, parts, strict=True):
        height, width = part.image.shape[:2]
        top = corner.top + (corner.height - height if corner.to_bottom else 0)
        left = corner.left + (corner.width - width if corner.to_right else 0)
        image[top : top + height, left : left + width] = part.image
        boxes.append(part.boxes + np.array([left, top, left, top], np.float32))
    return Sample(image, np.concatenate(boxes), np.concatenate([part.labels for part in parts]))
