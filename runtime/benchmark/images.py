"""The images that a benchmark runs on: from files and folders, or generated and marked as such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..files import atomic_write
from ..images import MAX_PIXELS, ImageError, decode
from ..images.sources import find_sources

# Sizes (height, width), about as frequent as in COCO.
GENERATED_SIZES = ((480, 640),) * 5 + ((640, 480),) * 2 + ((427, 640),) * 2 + ((640, 427),)


@dataclass(frozen=True)
class ImageSet:
    """What a report says about the images."""

    source: str  # folders or files, or how they were generated
    is_generated: bool
    count: int
    sizes: dict[str, int]  # number of images by size, such as "640×480"
    mean_bytes: float  # per file
    skipped: int


@dataclass(frozen=True)
class ImageFiles:
    """Readable image files with their sizes."""

    source: str  # files and folders, or how they were generated
    is_generated: bool
    sizes_hw: dict[Path, tuple[int, int]]
    bytes: int  # of all files together
    skipped: tuple[str, ...]  # one line per image that could not be read
    left_out: tuple[str, ...] = ()  # one line per reason why entries of a folder were left out

    def problems(self) -> list[str]:
        """The lines for the terminal about what is not measured."""
        return [*self.left_out, *(f"warning: skipped {line}" for line in self.skipped)]

    def summary(self) -> ImageSet:
        """Counts and mean file size, for a report."""
        counts = Counter(f"{width}×{height}" for height, width in self.sizes_hw.values())
        count = len(self.sizes_hw)
        sizes = dict(counts.most_common())
        return ImageSet(self.source, self.is_generated, count, sizes, self.bytes / count, len(self.skipped))


def find_images(inputs: Sequence[Path], count: int, max_pixels: int = MAX_PIXELS) -> ImageFiles:
    """The first `count` readable images in files and folders. Raises UserError where none is readable."""
    left_out: list[str] = []
    files = [source.path for source in find_sources(inputs, say=left_out.append) if not source.is_video]
    sizes, skipped = dict[Path, tuple[int, int]](), list[str]()
    for path in files:
        if len(sizes) == count:
            break
        try:
            image = decode(path, max_pixels=max_pixels)
        except ImageError as error:
            skipped.append(str(error))
        else:
            sizes[path] = (image.shape[0], image.shape[1])
    source = " ".join(map(str, inputs))
    if not sizes:
        raise UserError(
            f"{source}: none of the {len(skipped)} images could be read; the first: {skipped[0]}"
            if skipped
            else f"{source}: no image there, expected image files; give a folder of them, or leave --images out"
        )
    return ImageFiles(source, False, sizes, sum(path.stat().st_size for path in sizes), tuple(skipped), tuple(left_out))


def generate_images(folder: Path, count: int) -> ImageFiles:
    """Write `count` JPEG files of smooth noise in COCO's usual sizes, to measure without a data set."""
    rng = np.random.default_rng(0)
    sizes = {}
    for index in range(count):
        height, width = GENERATED_SIZES[index % len(GENERATED_SIZES)]
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
        smooth = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        image = smooth + rng.normal(0, 12, smooth.shape)  # grain, which gives files about the size of photographs
        path = folder / f"{index:04}.jpg"
        _, data = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])
        atomic_write(path, data.tobytes())
        sizes[path] = (height, width)
    total = sum(path.stat().st_size for path in sizes)
    return ImageFiles("generated: smooth noise in COCO's usual sizes", True, sizes, total, ())
