"""From a picture to the network's canvas and back. Training, validation and deployment all use this file.

B images, H × W a canvas' size; `_hw` is (height, width); boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .errors import UserError
from .manifest import Preprocess


@dataclass(frozen=True)
class Geometry:
    """Where a picture lies on its canvas: resized, top-left."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    canvas_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Canvas pixels per image pixel; the axes differ by the rounding of the resized size."""
        return self.resized_hw[1] / self.image_hw[1], self.resized_hw[0] / self.image_hw[0]


@dataclass(frozen=True)
class Batch:
    images: np.ndarray  # uint8 [B, H, W, 3] RGB canvases
    image_sizes: np.ndarray  # int32 [B, 2] height, width of the picture on its canvas
    geometries: tuple[Geometry, ...]


def resize_scale(image_hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Size (height, width) that brings the shorter side to `short_side`, or the longer to `long_side` if that is less.

    The aspect is kept but for rounding; a side is at least 1.
    """
    height, width = image_hw
    if height < 1 or width < 1:
        raise UserError(f"a picture of {width}×{height} pixels has no content; expected at least 1×1")
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def plan(image_hw: tuple[int, int], pre: Preprocess) -> Geometry:
    """Geometry of a picture of this size on the smallest canvas that holds it."""
    resized_hw = resize_scale(image_hw, pre.short_side, pre.long_side)
    return Geometry(image_hw, resized_hw, _round_up(resized_hw, pre.size_divisor))


def resize(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The picture at another size: the one resize of training and deployment (bilinear, half-pixel centres).

    Returns `image` itself where the size is already right.
    """
    if image.shape[:2] == tuple(size_hw):
        return image
    return cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)


def check_image(image: np.ndarray, index: int) -> None:
    """Raise UserError, naming picture `index`, unless it is uint8 [h, w, 3]."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"picture {index} is {given}, expected uint8 [height, width, 3] in RGB order")


def make_batch(images: Sequence[np.ndarray], pre: Preprocess, canvas_hw: tuple[int, int] | None = None) -> Batch:
    """Resize pictures (uint8 [h, w, 3] RGB, any sizes) and lay them on one canvas each.

    The canvas is `canvas_hw` or else the smallest that holds every picture, sides multiples of the divisor; what a
    picture leaves free has the padding colour. Raises UserError where a picture has another type or does not fit.
    """
    for index, image in enumerate(images):
        check_image(image, index)
    plans = [plan((image.shape[0], image.shape[1]), pre) for image in images]
    if canvas_hw is None:
        if not plans:
            raise UserError("an empty batch has no canvas size; give at least one picture or canvas_hw")
        canvas_hw = max(p.canvas_hw[0] for p in plans), max(p.canvas_hw[1] for p in plans)
    for index, p in enumerate(plans):
        if p.resized_hw[0] > canvas_hw[0] or p.resized_hw[1] > canvas_hw[1]:
            raise UserError(
                f"picture {index} is {_size(p.resized_hw)} after resizing (sides {pre.short_side}/{pre.long_side}) and "
                f"does not fit the canvas of {_size(canvas_hw)}; use a larger canvas or export for smaller sides"
            )
    canvases = np.empty((len(images), *canvas_hw, 3), np.uint8)  # [B, H, W, 3]
    sizes = np.array([p.resized_hw for p in plans], np.int32).reshape(len(plans), 2)  # [B, 2]
    for canvas, image, p in zip(canvases, images, plans, strict=True):
        height, width = p.resized_hw
        canvas[:height, :width] = resize(image, p.resized_hw)
        canvas[height:] = pre.pad_value
        canvas[:height, width:] = pre.pad_value
    return Batch(canvases, sizes, tuple(Geometry(p.image_hw, p.resized_hw, canvas_hw) for p in plans))


def boxes_to_canvas(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Boxes [n, 4] from image pixels to canvas pixels, float32."""
    return (np.asarray(boxes, np.float32).reshape(-1, 4) * np.tile(geometry.scale_xy, 2)).astype(np.float32)


def boxes_to_image(boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Boxes [n, 4] from canvas pixels to image pixels, clipped to the image, float32."""
    height, width = geometry.image_hw
    scaled = np.asarray(boxes, np.float32).reshape(-1, 4) / np.tile(geometry.scale_xy, 2)
    return np.clip(scaled, 0, np.array([width, height, width, height])).astype(np.float32)


def _round_up(size_hw: tuple[int, int], divisor: int) -> tuple[int, int]:
    return -(-size_hw[0] // divisor) * divisor, -(-size_hw[1] // divisor) * divisor


def _size(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]}×{size_hw[0]}"
