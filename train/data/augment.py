"""Random augmentation of a training image and its boxes, with the resize that deployment uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import cv2
import numpy as np

from runtime.bounds import Bounds, Fraction, Items, Side
from runtime.images.preprocess import resize, resize_scale
from runtime.manifest import Preprocess

REGION = -1  # label of a region to ignore, which is no object
MIN_SIDE = 1.0  # px on the canvas; boxes cropped to less are dropped
CropSide = Annotated[int, Bounds(0, 2**14)]
PartScale = Annotated[float, Bounds(0.01, 10)]


@dataclass(frozen=True)
class Augment:
    """Random changes of a training image, in this order; then the mosaics that are made of such images."""

    horizontal_flip: Fraction = 0.5  # probability of exchanging left and right
    vertical_flip: Fraction = 0.0  # probability of exchanging top and bottom
    transpose: Fraction = 0.0  # probability of exchanging x and y
    short_side_min: Side = 800  # px; least shorter side that is drawn
    short_side_max: Side = 800  # px; largest shorter side that is drawn
    # If not empty, the shorter side is one of these instead.
    short_sides: Annotated[tuple[Side, ...], Items(0, 1000)] = ()
    # Height and width of a crop at a random place; smaller images are padded. 0 0 keeps whole images.
    crop: tuple[CropSide, CropSide] = (0, 0)
    brightness: Fraction = 0.0  # shift of at most ± this fraction of 255
    contrast: Fraction = 0.0  # factor of the contrast, in the range 1 ± this
    saturation: Fraction = 0.0  # factor of the saturation, in the range 1 ± this
    # A cropped box is kept if at least this fraction of its area is still in the image.
    min_visible: Fraction = 0.3
    # Probability of four images on one canvas, each of them changed as above. The canvas is a crop's, or that of the
    # first image.
    mosaic: Fraction = field(default=0.0, metadata={"absent": 0.0})
    # Least and largest factor of the shorter side of an image in a mosaic.
    mosaic_scale: tuple[PartScale, PartScale] = field(default=(0.5, 1.0), metadata={"absent": [0.5, 1.0]})
    # The share of the schedule's steps after which there are no mosaics.
    mosaic_until: Fraction = field(default=0.8, metadata={"absent": 0.8})

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if self.short_side_min > self.short_side_max:
            yield "short_side_min", f"at most short_side_max, here {self.short_side_max}"
        if min(self.crop) == 0 and max(self.crop) > 0:
            yield "crop", "two sizes, or 0 0"
        if self.mosaic_scale[0] > self.mosaic_scale[1]:
            yield "mosaic_scale", "two factors, the smaller first"


class Sample(NamedTuple):
    """An image and its ground truth."""

    image: np.ndarray  # uint8 [h, w, 3] RGB
    boxes: np.ndarray  # float32 [n, 4] xyxy px
    labels: np.ndarray  # int64 [n]; REGION: the box is a region to ignore


class Choices(NamedTuple):
    """The random choices made before an image is read: the resize says how many of its pixels are needed."""

    horizontal_flip: bool
    vertical_flip: bool
    transpose: bool
    short_side: int


def choose(settings: Augment, rng: np.random.Generator) -> Choices:
    """Make the choices for an image."""
    return Choices(
        horizontal_flip=rng.random() < settings.horizontal_flip,
        vertical_flip=rng.random() < settings.vertical_flip,
        transpose=rng.random() < settings.transpose,
        short_side=draw_short_side(settings, rng),
    )


def training_hw(image_hw: tuple[int, int], short_side: int, pre: Preprocess) -> tuple[int, int]:
    """Height and width that an image is resized to, before transposing, for a shorter side of `short_side` px."""
    # The limit of the longer side grows with a shorter side that is above the deployed one.
    long_side = max(pre.long_side, round(pre.long_side * short_side / pre.short_side))
    return resize_scale(image_hw, short_side, long_side)


def augment(
    sample: Sample,
    choices: Choices,
    size_hw: tuple[int, int],
    settings: Augment,
    pre: Preprocess,
    rng: np.random.Generator,
) -> Sample:
    """Augment a sample as chosen, and by a random crop and colour jitter; `size_hw` is the size before transposing."""
    if choices.horizontal_flip:
        sample = flip_horizontal(sample)
    if choices.vertical_flip:
        sample = flip_vertical(sample)
    if choices.transpose:
        sample, size_hw = transpose(sample), (size_hw[1], size_hw[0])
    sample = rescale(sample, size_hw, pre.divide_large)
    if settings.crop != (0, 0):
        sample = random_crop(sample, settings.crop, settings.min_visible, rng)
    return sample._replace(image=jitter_colour(sample.image, settings, rng))


def draw_short_side(settings: Augment, rng: np.random.Generator) -> int:
    """A random shorter side in px, from the list of sizes or the range."""
    if settings.short_sides:
        return settings.short_sides[int(rng.integers(len(settings.short_sides)))]
    return int(rng.integers(settings.short_side_min, settings.short_side_max + 1))


def flip_horizontal(sample: Sample) -> Sample:
    """Mirror image and boxes left to right."""
    width = sample.image.shape[1]
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = width - sample.boxes[:, [2, 0]]
    return sample._replace(image=sample.image[:, ::-1], boxes=boxes)


def flip_vertical(sample: Sample) -> Sample:
    """Mirror image and boxes top to bottom."""
    height = sample.image.shape[0]
    boxes = sample.boxes.copy()
    boxes[:, [1, 3]] = height - sample.boxes[:, [3, 1]]
    return sample._replace(image=sample.image[::-1], boxes=boxes)


def transpose(sample: Sample) -> Sample:
    """Exchange the x and y axes of image and boxes."""
    return sample._replace(image=sample.image.transpose(1, 0, 2), boxes=sample.boxes[:, [1, 0, 3, 2]])


def rescale(sample: Sample, size_hw: tuple[int, int], divide_large: bool = False) -> Sample:
    """Resize image and boxes to `size_hw`; `divide_large` is Preprocess's."""
    height, width = sample.image.shape[:2]
    factors = np.array([size_hw[1] / width, size_hw[0] / height], dtype=np.float32)
    image = resize(np.ascontiguousarray(sample.image), size_hw, divide_large)
    return sample._replace(image=image, boxes=sample.boxes * np.tile(factors, 2))


def random_crop(sample: Sample, crop_hw: tuple[int, int], min_visible: float, rng: np.random.Generator) -> Sample:
    """Crop to a window of at most `crop_hw` at a random place.

    Boxes are clipped to the window; a box of which less than the fraction `min_visible` is left is dropped. Of a
    region to ignore anything that is left counts.
    """
    height, width = sample.image.shape[:2]
    h, w = min(height, crop_hw[0]), min(width, crop_hw[1])
    top = int(rng.integers(0, height - h + 1))
    left = int(rng.integers(0, width - w + 1))
    shifted = sample.boxes - np.array([left, top, left, top], dtype=np.float32)
    clipped = np.clip(shifted, 0, np.array([w, h, w, h], dtype=np.float32))
    sides = clipped[:, 2:] - clipped[:, :2]
    full = np.prod(shifted[:, 2:] - shifted[:, :2], axis=1)
    visible = (sides.prod(axis=1) >= min_visible * full) | (sample.labels == REGION)
    keep = (sides >= MIN_SIDE).all(axis=1) & visible
    return Sample(sample.image[top : top + h, left : left + w], clipped[keep], sample.labels[keep])


def jitter_colour(image: np.ndarray, settings: Augment, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation at random by one colour matrix: uint8 [h, w, 3] in and out."""
    if settings.brightness == settings.contrast == settings.saturation == 0:
        return image
    contrast = 1 + settings.contrast * rng.uniform(-1, 1)
    saturation = 1 + settings.saturation * rng.uniform(-1, 1)
    shift = 255 * settings.brightness * rng.uniform(-1, 1)
    grey = np.full((3, 3), 1 / 3)
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = np.full((3, 1), shift + 127.5 * (1 - contrast))
    return cv2.transform(np.ascontiguousarray(image), np.hstack((matrix, offset)))
