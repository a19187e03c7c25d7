"""Boxes that seem to be in another form than COCO's [x, y, width, height] in pixels."""

from __future__ import annotations

import numpy as np

_PART = 1 << 12  # boxes that are compared at a time, so that a large file needs no more memory
SLACK = 1.0  # px that a box may reach beyond its image because its coordinates were rounded


def doubt_of_boxes(boxes: np.ndarray, sizes_hw: np.ndarray) -> str | None:
    """Why boxes [n, 4], read as x, y, width, height in px, seem to be in another form; None where they don't.

    `sizes_hw` [n, 2] are the heights and widths of their images. Fractions of the sides lie within the first pixel.
    Corners, read as sizes, lead out of the image for a third of the boxes or more, and never do as corners.
    """
    if not len(boxes):
        return None
    if boxes.min() >= 0 and boxes.max() <= 1:
        return "all of them lie within the first pixel, as fractions of the image's sides do; bbox is in pixels"
    outside = 0
    for first in range(0, len(boxes), _PART):
        given, limits = boxes[first : first + _PART], sizes_hw[first : first + _PART, ::-1] + SLACK
        if (given[:, 2:] < given[:, :2]).any() or (given[:, 2:] > limits).any():
            return None  # no corners
        outside += np.count_nonzero((given[:, :2] + given[:, 2:] > limits).any(axis=1))
    if 3 * outside < len(boxes):
        return None
    return (
        f"{outside} of {len(boxes)} looked at reach out of their images, and none would if bbox were the corners "
        "x1, y1, x2, y2; it is x, y, width, height"
    )
