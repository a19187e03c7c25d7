"""From an image to the network's canvas and back. Training, validation and deployment all use this module.

An image is decoded (`load`), reduced by 2, 4 or 8 if it is that much too large, and resized bilinearly. A JPEG is
reduced by its decoder, whose averages differ slightly from those computed on an array. Only files, not arrays, give
exactly the pixels of training.

B images, H × W the size of a canvas; `_hw` is (height, width); boxes are xyxy in continuous pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import cv2
import numpy as np

from ..errors import UserError
from ..manifest import Preprocess
from .decoding import MAX_PIXELS, Decoded, decode_image, whole
from .device_array import DeviceImage, check_pixels
from .device_canvases import DeviceCanvases, PlacedImage, join_canvases

WantedHw = Callable[[tuple[int, int]], tuple[int, int]]  # an image's (height, width) → the size it is resized to


@dataclass(frozen=True)
class Geometry:
    """How an image lies on its canvas: resized, in the top-left corner."""

    image_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    canvas_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Canvas pixels per image pixel; the axes differ by the rounding of the resized size."""
        return self.resized_hw[1] / self.image_hw[1], self.resized_hw[0] / self.image_hw[0]


@dataclass(frozen=True)
class Batch:
    """Images laid on canvases of one size."""

    images: np.ndarray  # uint8 [B, H, W, 3] RGB canvases
    image_sizes: np.ndarray  # int32 [B, 2] height, width of each image on its canvas
    geometries: tuple[Geometry, ...]

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width that all canvases of the batch share."""
        return self.images.shape[1], self.images.shape[2]


@dataclass(frozen=True)
class DeviceBatch:
    """As `Batch`, of canvases that a backend still has to make in its GPU's memory."""

    images: DeviceCanvases
    image_sizes: np.ndarray  # int32 [B, 2] height, width of each image on its canvas
    geometries: tuple[Geometry, ...]

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Height and width that all canvases of the batch share."""
        return self.images.canvas_hw


def resize_scale(image_hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Size (height, width) with the shorter side `short_side`, or smaller if the longer side would exceed `long_side`.

    The aspect ratio is kept up to rounding; a side is at least 1. Raises UserError for an image without pixels.
    """
    height, width = image_hw
    if height < 1 or width < 1:
        raise UserError(f"an image of {width}×{height} pixels has no content; expected at least 1×1")
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def plan(image_hw: tuple[int, int], pre: Preprocess) -> Geometry:
    """Geometry of an image of this size on the smallest canvas that holds it, before any limit of a graph."""
    resized_hw = resize_scale(image_hw, pre.short_side, pre.long_side)
    return Geometry(image_hw, resized_hw, _round_up(resized_hw, pre.size_divisor))


def reduction(image_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> int:
    """The factor by which an image is reduced before it is resized to `wanted_hw`: 1, 2, 4 or 8.

    It is the largest that divides both sides, so that boxes need no correction, and leaves at least the wanted size.
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
    """An image file, or its bytes, decoded at the size that its resize needs. Raises ImageError.

    The resize is that of `make_batch` with `pre`, or to `wanted_hw` of the image's size. If `pre` is None, all pixels
    are decoded.
    """
    if pre is None:
        return decode_image(source, max_pixels=max_pixels)
    wanted = wanted_hw or (lambda image_hw: plan(image_hw, pre).resized_hw)
    by = (lambda image_hw: reduction(image_hw, wanted(image_hw))) if pre.divide_large else None
    return decode_image(source, by, max_pixels=max_pixels)


def resize(
    image: np.ndarray, size_hw: tuple[int, int], divide_large: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """Resize an image, the same way in training and deployment: bilinear, with half-pixel centres.

    With `divide_large`, a much larger image is first averaged over 2 × 2, 4 × 4 or 8 × 8 pixels (`reduction`). The
    result is written to `out` if given; otherwise it may be `image` itself, if that has the right size.
    """
    size = (size_hw[1], size_hw[0])
    if divide_large and (by := reduction((image.shape[0], image.shape[1]), size_hw)) > 1:
        # By these factors INTER_AREA averages whole pixels; by others it is slow.
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
    """The image as `Decoded`; an array has its full size."""
    return image if isinstance(image, Decoded) else whole(image)


def full_size(image: np.ndarray | Decoded | DeviceImage) -> tuple[int, int]:
    """Height and width of an image, in which its boxes are measured."""
    return image.size_hw if isinstance(image, Decoded | DeviceImage) else (image.shape[0], image.shape[1])


def check_image(image: np.ndarray | Decoded | DeviceImage, index: int) -> None:
    """Raise UserError that names image `index`, unless its pixels are uint8 [h, w, 3]."""
    pixels = image.pixels if isinstance(image, Decoded) else image
    if isinstance(pixels, DeviceImage):
        return  # checked when it was taken
    if not isinstance(pixels, np.ndarray):
        raise UserError(f"image {index} is {type(pixels).__name__}, expected uint8 [height, width, 3] in RGB order")
    try:
        check_pixels(pixels.dtype.name, pixels.shape)
    except UserError as error:
        raise UserError(f"image {index} is {error}") from None


def make_batch(
    images: Sequence[np.ndarray | Decoded], pre: Preprocess, canvas_hw: tuple[int, int] | None = None
) -> Batch:
    """Resize images (loaded, or arrays uint8 [h, w, 3] RGB; any sizes) and lay each on a canvas, all of one size.

    The canvas is `canvas_hw`, or the smallest that holds every image, with sides that are multiples of the divisor.
    The rest of a canvas has the padding colour. Raises UserError if an image has another type or does not fit.
    """
    geometries = _geometries(images, pre, canvas_hw)
    if not geometries and canvas_hw is None:
        raise UserError("an empty batch has no canvas size; give at least one image or canvas_hw")
    canvases = np.empty((len(images), *(canvas_hw or geometries[0].canvas_hw), 3), np.uint8)  # [B, H, W, 3]
    for canvas, image, geometry in zip(canvases, images, geometries, strict=True):
        _lay(image, geometry.resized_hw, pre, canvas)
    return Batch(canvases, _resized_sizes(geometries), geometries)


def place_batch(
    images: Sequence[np.ndarray | Decoded | DeviceImage], pre: Preprocess, canvas_hw: tuple[int, int]
) -> DeviceBatch:
    """As `make_batch`, for a backend that makes the canvases of images in its GPU's memory there.

    The canvases of images on the host are made here. Raises UserError.
    """
    geometries = _geometries(images, pre, canvas_hw)
    rows: list[np.ndarray | PlacedImage] = []
    for image, geometry in zip(images, geometries, strict=True):
        if isinstance(image, DeviceImage):
            by = reduction(image.size_hw, geometry.resized_hw) if pre.divide_large else 1
            rows.append(PlacedImage(image, by, geometry.resized_hw))
        else:
            canvas = np.empty((*canvas_hw, 3), np.uint8)
            _lay(image, geometry.resized_hw, pre, canvas)
            rows.append(canvas)
    return DeviceBatch(DeviceCanvases(tuple(rows), canvas_hw, pre.pad_value), _resized_sizes(geometries), geometries)


@overload
def join_batches(parts: Sequence[Batch]) -> Batch: ...


@overload
def join_batches(parts: Sequence[Batch | DeviceBatch]) -> Batch | DeviceBatch: ...


def join_batches(parts: Sequence[Batch | DeviceBatch]) -> Batch | DeviceBatch:
    """One batch of several that share a canvas size."""
    if len(parts) == 1:
        return parts[0]
    images = join_canvases([part.images for part in parts])
    sizes = np.concatenate([part.image_sizes for part in parts])
    geometries = tuple(geometry for part in parts for geometry in part.geometries)
    if isinstance(images, DeviceCanvases):
        return DeviceBatch(images, sizes, geometries)
    return Batch(images, sizes, geometries)


def _geometries(
    images: Sequence[np.ndarray | Decoded | DeviceImage], pre: Preprocess, canvas_hw: tuple[int, int] | None
) -> tuple[Geometry, ...]:
    """How each image lies on a canvas; all canvases have one size. Raises UserError if an image does not fit."""
    for index, image in enumerate(images):
        check_image(image, index)
    plans = [plan(full_size(image), pre) for image in images]
    if canvas_hw is None:
        canvas_hw = max((p.canvas_hw[0] for p in plans), default=0), max((p.canvas_hw[1] for p in plans), default=0)
    for index, p in enumerate(plans):
        if p.resized_hw[0] > canvas_hw[0] or p.resized_hw[1] > canvas_hw[1]:
            raise UserError(
                f"image {index} is {_size(p.resized_hw)} after resizing (sides {pre.short_side}/{pre.long_side}) and "
                f"does not fit the canvas of {_size(canvas_hw)}; use a larger canvas or export for smaller sides"
            )
    return tuple(Geometry(p.image_hw, p.resized_hw, canvas_hw) for p in plans)


def _resized_sizes(geometries: Sequence[Geometry]) -> np.ndarray:
    return np.array([geometry.resized_hw for geometry in geometries], np.int32).reshape(len(geometries), 2)


def _lay(image: np.ndarray | Decoded, resized_hw: tuple[int, int], pre: Preprocess, canvas: np.ndarray) -> None:
    """Resize an image into the corner of a canvas, and fill the rest."""
    (height, width), (bottom, right) = resized_hw, canvas.shape[:2]
    resize(as_decoded(image).pixels, resized_hw, pre.divide_large, out=canvas[:height, :width])
    for y1, x1, y2 in ((0, width, height), (height, 0, bottom)):
        if x1 < right and y1 < y2:  # OpenCV would draw the edge of an empty rectangle
            cv2.rectangle(canvas, (x1, y1), (right - 1, y2 - 1), pre.pad_value, cv2.FILLED)


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
