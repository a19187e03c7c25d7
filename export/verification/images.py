"""The batches that a comparison runs on: images laid on canvases that a graph takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from runtime.errors import UserError
from runtime.images import MAX_PIXELS, SUFFIXES, ImageError, decode
from runtime.images.finder import find_images
from runtime.images.preprocess import plan, resize
from runtime.manifest import Manifest

COMPARISON_IMAGES = 3  # how many images a comparison takes
SECOND_SIDE = 416  # px, the most of the second canvas

logger = logging.getLogger(__name__)


class Case(NamedTuple):
    """One batch to compare on."""

    name: str  # "batch × height × width"
    images: np.ndarray  # uint8 [B, H, W, 3]
    image_sizes: np.ndarray  # int32 [B, 2]


def make_cases(manifest: Manifest, sources: Sequence[np.ndarray]) -> list[Case]:
    """Two batches: the least on the recipe's canvas, and up to 3 images on another canvas where the graph takes one.

    One batch where the graph takes a single shape. The second canvas is smaller: the coarsest levels of a small canvas
    have fewer scores than their candidates, and those of a large canvas never have.
    """
    shapes = manifest.inputs
    usual = _within(plan((3, 4), manifest.preprocess).canvas_hw, manifest)  # a landscape photograph of 4:3
    scale = min(3 / 4, SECOND_SIDE / max(usual))
    small = _within((int(usual[1] * scale), int(usual[0] * scale)), manifest)  # upright
    batches = shapes.batch_min, shapes.nearest_batch(COMPARISON_IMAGES)
    return [
        make_case(batch, canvas_hw, sources, manifest.preprocess.pad_value)
        for batch, canvas_hw in dict.fromkeys(zip(batches, (usual, small), strict=True))
    ]


def load_comparison_images(
    folder: str | None, fallback: str = "", seen: Iterable[Path] = (), *, max_pixels: int = MAX_PIXELS
) -> list[np.ndarray]:
    """The first readable images of `folder`, or of the folder `fallback`; none where the fallback has none.

    Images in `seen`, on which ranges were measured, are passed over where there are others. What is left out
    (`runtime.images.finder`) and what cannot be read is logged. Raises UserError where `folder` is given and holds no
    image that can be read.
    """
    directory = Path(folder if folder is not None else fallback)
    if folder is None and not (directory.name and directory.is_dir()):
        return []
    found = find_images(directory)
    for line in found.left_out:
        logger.info(f"{directory}: left out {line}")
    if folder is not None and not found.paths:
        raise UserError(f"--images {folder}: no images there; expected a folder with {', '.join(SUFFIXES)} files")
    problems: list[str] = []
    images = readable_images(unseen(found.paths, seen), COMPARISON_IMAGES, problems, max_pixels=max_pixels)
    images = images or readable_images(found.paths, COMPARISON_IMAGES, problems, max_pixels=max_pixels)
    if folder is not None and not images:
        raise UserError(f"none of the {len(found.paths)} images could be read; the first: {problems[0]}")
    for problem in problems:
        logger.warning(f"warning: skipped {problem}")
    return images


def other_images(folder: str | None, seen: Iterable[Path], *, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """The first readable images of `folder` that are not in `seen`, uint8 [h, w, 3] RGB; none without a folder."""
    if folder is None:
        return []
    return readable_images(unseen(find_images(Path(folder)).paths, seen), COMPARISON_IMAGES, max_pixels=max_pixels)


def readable_images(
    paths: Iterable[Path], count: int, problems: list[str] | None = None, *, max_pixels: int = MAX_PIXELS
) -> list[np.ndarray]:
    """The first `count` images that can be read, uint8 [h, w, 3] RGB; `problems` gets a message for each other."""
    found: list[np.ndarray] = []
    for path in paths:
        if len(found) == count:
            break
        try:
            found.append(decode(path, max_pixels=max_pixels))
        except ImageError as error:
            if problems is not None:
                problems.append(str(error))
    return found


def unseen(paths: Iterable[Path], seen: Iterable[Path]) -> Iterator[Path]:
    """The paths of files that are not in `seen`."""
    known = {path.resolve() for path in seen}
    return (path for path in paths if path.resolve() not in known)


def synthetic_images() -> list[np.ndarray]:
    """Three seeded images of different shapes, with smooth areas, edges and noise."""
    random = np.random.default_rng(0)
    sources = []
    for height, width in ((480, 640), (640, 480), (512, 512)):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        source = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(20):
            x, y = int(random.integers(0, width)), int(random.integers(0, height))
            w, h = (int(side) for side in random.integers(8, 200, 2))
            source[y : y + h, x : x + w] = random.integers(0, 256, 3)
        noise = random.normal(0, 8, source.shape)
        sources.append(np.clip(source + noise, 0, 255).astype(np.uint8))
    return sources


def make_case(batch: int, canvas_hw: tuple[int, int], sources: Sequence[np.ndarray], pad: tuple[int, int, int]) -> Case:
    """A batch of images, each as large as the canvas allows and laid top-left; the rest is padding."""
    images = np.empty((batch, *canvas_hw, 3), np.uint8)
    images[:] = pad
    sizes = np.empty((batch, 2), np.int32)
    for i in range(batch):
        source = sources[i % len(sources)]
        scale = min(canvas_hw[0] / source.shape[0], canvas_hw[1] / source.shape[1])
        height, width = (max(1, int(side * scale)) for side in source.shape[:2])
        images[i, :height, :width] = resize(source, (height, width))
        sizes[i] = height, width
    return Case(f"{batch} × {canvas_hw[0]} × {canvas_hw[1]}", images, sizes)


def _within(canvas_hw: tuple[int, int], manifest: Manifest) -> tuple[int, int]:
    """The nearest canvas that the graph takes, sides multiples of its divisor."""
    divisor = manifest.preprocess.size_divisor
    height, width = (max(divisor, side // divisor * divisor) for side in canvas_hw)
    return manifest.inputs.nearest_canvas((height, width))
