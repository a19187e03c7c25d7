"""From an image to the network's canvas and back. Training, validation and deployment all use this file.

An image's pixels are decoded (`load`), divided by 2, 4 or 8 where it is that much too large, resized bilinearly. A
JPEG is divided by its decoder, whose averages are not exactly those of an array: files, not arrays, have the very
pixels of training.

B images, H × W a canvas' size; `_hw` is (height, width); boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import UserError
from ..manifest import Preprocess
from .decoding import MAX_PIXELS, Decoded, decode_image, whole

WantedHw = Callable[[tuple[int, int]], tuple[int, int]]  # an image's (height, width) → those that it is resized to


@dataclass(frozen=True)
class Geometry:
    """Where an image lies on its canvas: resized, top-left."""

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
    image_sizes: np.ndarray  # int32 [B, 2] height, width of the image on its canvas
    geometries: tuple[Geometry, ...]

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width that all canvases of the batch share."""
        return self.images.shape[1], self.images.shape[2]


def resize_scale(image_hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Size (height, width) that brings the shorter side to `short_side`, or the longer to `long_side` if that is less.

    The aspect is kept but for rounding; a side is at least 1.
    """
    height, width = image_hw
    if height < 1 or width < 1:
        raise UserError(f"an image of {width}×{height} pixels has no content; expected at least 1×1")
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def plan(image_hw: tuple[int, int], pre: Preprocess) -> Geometry:
    """Geometry of an image of this size on the smallest canvas that holds it."""
    resized_hw = resize_scale(image_hw, pre.short_side, pre.long_side)
    return Geometry(image_hw, resized_hw, _round_up(resized_hw, pre.size_divisor))


def divisor(image_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> int:
    """By how much an image is divided before it is resized to `wanted_hw`: 1, 2, 4 or 8.

    The most that leaves it at least as large as wanted and divides both sides, so that boxes need no correction.
    """
    fitting = (
        by
        for by in (8, 4, 2)
        if all(side % by == 0 and side // by >= want for side, want in zip(image_hw, wanted_hw, strict=True))
    )
    return next(fitting, 1)


def load(
    source: str | os.PathLike[str] | bytes,
    pre: Preprocess | None,
    wanted_hw: WantedHw | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """A JPEG or PNG image with the pixels that a resize needs: `make_batch`'s, or that to `wanted_hw` of its size.

    Without `pre` all pixels. Raises ImageError.
    """
    if pre is None:
        return decode_image(source, max_pixels=max_pixels)
    wanted = wanted_hw or (lambda image_hw: plan(image_hw, pre).resized_hw)
    by = (lambda image_hw: divisor(image_hw, wanted(image_hw))) if pre.divide_large else None
    return decode_image(source, by, max_pixels=max_pixels)


def resize(
    image: np.ndarray, size_hw: tuple[int, int], divide_large: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """The image at another size: the one resize of training and deployment (bilinear, half-pixel centres).

    With `divide_large` a larger one is first averaged over 2 × 2, 4 × 4 or 8 × 8 pixels (`divisor`), unless its decoder
    did. The result is in `out` where that is given; else it may be `image` itself, where the size is already right.
    """
    size = (size_hw[1], size_hw[0])
    if divide_large and (by := divisor((image.shape[0], image.shape[1]), size_hw)) > 1:
        # Which is where INTER_AREA averages; in any other proportion it is slow.
        small = (image.shape[1] // by, image.shape[0] // by)
        image = cv2.resize(image, small, dst=out if small == size else None, interpolation=cv2.INTER_AREA)
        if small == size:
            return image
    if image.shape[:2] != tuple(size_hw):
        return cv2.resize(image, size, dst=out, interpolation=cv2.INTER_LINEAR)
    if out is None:
        return image
    out[:] = image
    return out


def as_decoded(image: np.ndarray | Decoded) -> Decoded:
    """The image itself, or that of an array."""
    return image if isinstance(image, Decoded) else whole(image)


def check_image(image: np.ndarray | Decoded, index: int) -> None:
    """Raise UserError, naming image `index`, unless its pixels are uint8 [h, w, 3]."""
    pixels = image.pixels if isinstance(image, Decoded) else image
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        given = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise UserError(f"image {index} is {given}, expected uint8 [height, width, 3] in RGB order")


def make_batch(
    images: Sequence[np.ndarray | Decoded], pre: Preprocess, canvas_hw: tuple[int, int] | None = None
) -> Batch:
    """Resize images (loaded, or arrays uint8 [h, w, 3] RGB; any sizes) and lay them on one canvas each.

    The canvas is `canvas_hw` or else the smallest that holds every image, sides multiples of the divisor; what a
    image leaves free has the padding colour. Raises UserError where an image has another type or does not fit.
    """
    for index, image in enumerate(images):
        check_image(image, index)
    decoded = [as_decoded(image) for image in images]
    plans = [plan(source.size_hw, pre) for source in decoded]
    if canvas_hw is None:
        if not plans:
            raise UserError("an empty batch has no canvas size; give at least one image or canvas_hw")
        canvas_hw = max(p.canvas_hw[0] for p in plans), max(p.canvas_hw[1] for p in plans)
    for index, p in enumerate(plans):
        if p.resized_hw[0] > canvas_hw[0] or p.resized_hw[1] > canvas_hw[1]:
            raise UserError(
                f"image {index} is {_size(p.resized_hw)} after resizing (sides {pre.short_side}/{pre.long_side}) and "
                f"does not fit the canvas of {_size(canvas_hw)}; use a larger canvas or export for smaller sides"
            )
    canvases = np.empty((len(images), *canvas_hw, 3), np.uint8)  # [B, H, W, 3]
    sizes = np.array([p.resized_hw for p in plans], np.int32).reshape(len(plans), 2)  # [B, 2]
    for canvas, source, p in zip(canvases, decoded, plans, strict=True):
        height, width = p.resized_hw
        resize(source.pixels, p.resized_hw, pre.divide_large, out=canvas[:height, :width])
        for top, left, bottom in ((0, width, height), (height, 0, canvas_hw[0])):
            if left < canvas_hw[1] and top < bottom:  # of a rectangle without area OpenCV would draw the edge
                cv2.rectangle(canvas, (left, top), (canvas_hw[1] - 1, bottom - 1), pre.pad_value, cv2.FILLED)
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
