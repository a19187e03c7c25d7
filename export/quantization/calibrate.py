"""Calibrating: the range of every value that may be quantized, measured on images and kept in a file.

Images are preprocessed as when deployed (`runtime.images.preprocess`) and run one at a time, so memory doesn't grow
with their number. One pass leaves the ranges of every method (`histogram.py`), and the mean of each channel, which
corrects biases.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from tqdm import tqdm

from runtime.coco import load_coco
from runtime.files import atomic_write
from runtime.images import MAX_PIXELS, SUFFIXES, Decoded, ImageError
from runtime.images.finder import find_images
from runtime.images.preprocess import load, make_batch
from runtime.manifest import Manifest

from ..calibration import METHODS, Calibration, CalibrationError, foreign, images_sha256, load_calibration
from ..onnx_model.file import INPUT_NAMES, expose_values
from ..onnx_model.network import cut_network
from ..onnx_model.session import open_session
from .histogram import Histogram
from .qdq import values_to_calibrate
from .scheme import CALIBRATION_IMAGES, Scheme

logger = logging.getLogger(__name__)


def list_images(folder: Path, count: int = CALIBRATION_IMAGES) -> list[Path]:
    """Up to `count` images of a folder and its subfolders, evenly spaced in the order of their names.

    What is left out (`runtime.images.finder`) is logged. Raises CalibrationError where there are none.
    """
    if not folder.is_dir():
        raise CalibrationError(f"{folder}: no such folder; expected the folder of the images to calibrate on")
    found = find_images(folder)
    for line in found.left_out:
        logger.info(f"{folder}: left out {line}")
    if not found.paths:
        raise CalibrationError(f"{folder}: no images there; looked for {' '.join(SUFFIXES)}")
    return evenly_spaced(found.paths, count)


def evenly_spaced(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` of the paths at equal distances, or all of them where there are fewer. Raises CalibrationError."""
    if count < 1:
        raise CalibrationError(f"--calibration-images {count}: expected at least 1")
    if len(paths) <= count:
        return list(paths)
    return [paths[i * len(paths) // count] for i in range(count)]


def calibrate(
    model: onnx.ModelProto,
    manifest: Manifest,
    images: Sequence[Path],
    progress: bool = True,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Calibration:
    """Measure ranges by running the float32 network on images.

    An image that can't be read is left out and named in `skipped`. Raises CalibrationError where none can be read, or
    where the network's values are not finite.
    """
    network = cut_network(model)
    names = values_to_calibrate(network)
    visible = expose_values(network, names)
    assert visible is not None
    session = open_session(visible)
    seen = {name: Histogram() for name in names}
    skipped: list[str] = []
    for path in tqdm(images, desc="calibrate", unit="img", disable=not progress, leave=False):
        try:
            image = load(path, manifest.preprocess, max_pixels=max_pixels)
        except ImageError as error:
            skipped.append(str(error))
            continue
        found = session.run(names, {INPUT_NAMES[0]: calibration_batch(image, manifest)})
        for name, values in zip(names, found, strict=True):
            seen[name].add(values)
    if len(skipped) == len(images):
        raise CalibrationError(f"none of the {len(images)} images could be read; the first: {skipped[0]}")
    return Calibration(
        manifest.graph_sha256,
        images_sha256(images),
        len(images) - len(skipped),
        tuple(skipped),
        {method: {name: seen[name].range(method) for name in names} for method in METHODS},
        {name: seen[name].means() for name in names},
    )


def calibrate_cached(
    model: onnx.ModelProto,
    manifest: Manifest,
    images: Sequence[Path],
    cache: Path,
    progress: bool = True,
    *,
    may_replace: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Calibration:
    """The calibration in the file `cache`; a new one, written there, where the file doesn't exist.

    A cache of another graph or of other images is replaced with `may_replace`, and raises CalibrationError otherwise.
    """
    if cache.exists():
        known = load_calibration(cache)
        problem = foreign(known, manifest, images)
        if problem is None:
            return known
        if not may_replace:
            raise CalibrationError(f"{cache}: {problem}; delete it to calibrate again")
        logger.info(f"{cache}: {problem}; calibrating again")
    made = calibrate(model, manifest, images, progress, max_pixels=max_pixels)
    atomic_write(cache, json.dumps(dataclasses.asdict(made), indent=1) + "\n")
    return made


def calibration_batch(image: np.ndarray | Decoded, manifest: Manifest) -> np.ndarray:
    """An image as the network takes it: uint8 [B, H, W, 3], the same image in each row, B the graph's least batch.

    Raises CalibrationError where the image needs a larger canvas than the graph takes.
    """
    shapes = manifest.inputs
    canvas = make_batch([image], manifest.preprocess).images
    canvas_hw = shapes.canvas_for((canvas.shape[1], canvas.shape[2]))
    if canvas_hw is None:
        raise CalibrationError(
            f"an image needs a canvas of {canvas.shape[2]}×{canvas.shape[1]}, the graph was exported for at most "
            f"{shapes.width_max}×{shapes.height_max}; export it for larger canvases"
        )
    full = np.empty((shapes.batch_min, *canvas_hw, 3), np.uint8)
    full[:] = manifest.preprocess.pad_value
    full[:, : canvas.shape[1], : canvas.shape[2]] = canvas
    return full


def calibration_images(folder: str | None, annotations: str | None, count: int, scheme: Scheme) -> list[Path]:
    """Up to `count` images to calibrate on, evenly spaced: of a folder, or of those that an annotation file lists.

    Empty where no folder is given and the precision needs no ranges; where one is given, the images of any precision
    also serve its comparison. Raises UserError.
    """
    if folder is None:
        if not scheme.is_quantized:
            return []
        raise CalibrationError(
            f"--precision {scheme.precision} needs images to calibrate on: give --images DIR, best the training images"
        )
    if annotations is None:
        return list_images(Path(folder), count)
    dataset = load_coco(annotations, folder)
    return evenly_spaced([dataset.path(i) for i in range(len(dataset))], count)
