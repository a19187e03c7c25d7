"""Checks of a graph's inputs, the same for every backend."""

from __future__ import annotations

import numpy as np

from ..images.device_canvases import Canvases
from ..manifest import Manifest
from .contract import BackendError


def check_feed(images: Canvases, image_sizes: np.ndarray, manifest: Manifest) -> None:
    """Raise BackendError unless images and image_sizes have the types, shapes and values that the graph takes."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise BackendError(f"images is {images.dtype} {list(images.shape)}, expected uint8 [B, H, W, 3]")
    batch, height, width, _ = images.shape
    if image_sizes.dtype != np.int32 or image_sizes.shape != (batch, 2):
        raise BackendError(f"image_sizes is {image_sizes.dtype} {list(image_sizes.shape)}, expected int32 [{batch}, 2]")
    names, given = ("batch", "canvas height", "canvas width"), (batch, height, width)
    for name, value, (low, high) in zip(names, given, manifest.inputs.ranges.values(), strict=True):
        if not low <= value <= high:
            expected = f"{low}" if low == high else f"{low} to {high}"
            raise BackendError(f"{name} {value}, but the graph was exported for {expected}; export it for other shapes")
    divisor = manifest.preprocess.size_divisor
    if height % divisor or width % divisor:
        raise BackendError(f"canvas {width}×{height}, expected sides that are multiples of {divisor}")
    if (image_sizes < 1).any() or (image_sizes > (height, width)).any():
        raise BackendError(f"image_sizes {image_sizes.tolist()} are not all within the canvas {height}, {width}")
