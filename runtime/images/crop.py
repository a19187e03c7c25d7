"""Rectangles of images, without a copy, wherever the pixels lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .decoding import Decoded, whole
from .device_array import DeviceImage


def crop(image: np.ndarray | Decoded | DeviceImage, x1: int, y1: int, x2: int, y2: int) -> Decoded | DeviceImage:
    """The part of an image from (x1, y1) to (x2, y2), excluded, in pixels of the image's full size.

    It shares the image's memory. An image that was decoded at a fraction of its size has no such parts: ValueError.
    """
    if isinstance(image, DeviceImage):
        rows, pixels, _ = image.strides
        return replace(image, address=image.address + y1 * rows + x1 * pixels, size_hw=(y2 - y1, x2 - x1))
    if isinstance(image, Decoded):
        if image.pixels.shape[:2] != image.size_hw:
            raise ValueError("an image that was decoded at a fraction of its size cannot be cut")
        image = image.pixels
    return whole(image[y1:y2, x1:x2])
