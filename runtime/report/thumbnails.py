"""The images that the page shows: which of them, and small JPEG copies within a budget of bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import cv2
import numpy as np

from ..draw import encode_jpeg
from ..images import MAX_PIXELS, ImageError, decode_image
from ..images.preprocess import reduction
from .content import ImageContent

MOST = 160  # images in a page; more of them make it slow to use
SIDES = (640, 512, 400, 320, 240, 160)  # px of the longer side: the largest at which all images fit the budget
_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of one image. Boxes are drawn in its pixels: those of the image times `scale`."""

    image: ImageContent
    width: int
    height: int
    scale: float
    data: str  # data URI; empty: there is no file of the image, or it cannot be read
    problem: str = ""  # why the image could not be read


def chosen_images(images: Sequence[ImageContent], most: int = MOST) -> list[ImageContent]:
    """At most `most` images, worst first. Half of them are those where models differ most, if any do."""
    worst = sorted(images, key=lambda image: -image.badness)
    changed = sorted((image for image in images if image.changed > 0), key=lambda image: -image.changed)
    places = {id(image): place for place, image in enumerate(worst)}
    kept: dict[int, ImageContent] = {}
    for pair in zip_longest(worst, changed):
        for image in pair:
            if image is not None and len(kept) < most:
                kept.setdefault(id(image), image)
    return sorted(kept.values(), key=lambda image: places[id(image)])


def make_thumbnails(images: Sequence[ImageContent], budget: int, max_pixels: int = MAX_PIXELS) -> list[Thumbnail]:
    """Thumbnails of the images whose data URIs have at most `budget` bytes together, the same size for all.

    Where even the smallest size is too large for all images, the last ones are left out. An image that cannot be read,
    has another size than annotated, or more than `max_pixels`, becomes a thumbnail without data.
    """
    sizes = [_sizes_of(image, max_pixels) for image in images]
    for level in range(len(SIDES)):
        if sum(len(found[level].data) for found in sizes) <= budget:
            return [found[level] for found in sizes]
    kept, total = [], 0
    for found in sizes:
        total += len(found[-1].data)
        if total > budget:
            break
        kept.append(found[-1])
    return kept


def _sizes_of(image: ImageContent, max_pixels: int) -> list[Thumbnail]:
    """The image at each of `SIDES`; never enlarged."""
    if image.path is None:
        return [_empty(image)] * len(SIDES)
    try:
        found = decode_image(
            image.path, lambda size_hw: reduction(size_hw, _shrunk(size_hw, SIDES[0])), max_pixels=max_pixels
        )
    except ImageError as error:
        return [_empty(image, str(error))] * len(SIDES)
    if found.size_hw != image.size_hw:
        (height, width), (said_h, said_w) = found.size_hw, image.size_hw
        return [_empty(image, f"the image is {width}×{height}, the annotations say {said_w}×{said_h}")] * len(SIDES)
    pixels, made = found.pixels, []
    for side in SIDES:
        pixels = _resized(pixels, _shrunk(image.size_hw, side))
        data = base64.b64encode(encode_jpeg(pixels, _QUALITY)).decode("ascii")
        height, width = pixels.shape[:2]
        made.append(Thumbnail(image, width, height, width / image.size_hw[1], f"data:image/jpeg;base64,{data}"))
    return made


def _empty(image: ImageContent, problem: str = "") -> Thumbnail:
    height, width = _shrunk(image.size_hw, SIDES[1])
    return Thumbnail(image, width, height, width / max(1, image.size_hw[1]), "", problem)


def _shrunk(size_hw: tuple[int, int], side: int) -> tuple[int, int]:
    """The size with its aspect kept and its longer side at most `side`."""
    scale = min(1.0, side / max(1, *size_hw))
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def _resized(pixels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:2] == size_hw:
        return pixels
    return cv2.resize(pixels, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA)
