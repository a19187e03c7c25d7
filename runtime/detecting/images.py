"""Detects on image files, hands the rows to the result files, and draws."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..batch_settings import WINDOW, pipeline_settings
from ..detection_files import DetectionFiles, detection_row
from ..detection_filter import KEEP_ALL, DetectionFilter
from ..detections import Detections
from ..detector import Detector
from ..draw import draw, encode_jpeg
from ..errors import UserError
from ..files import atomic_write
from ..images import MAX_PIXELS, Decoded, decode
from ..images.sources import Source
from ..images.strips import StripImage
from ..outputs import check_outputs
from ..pipeline import run_pipeline
from ..terminal import printable
from ..tiling.detector import detect_or_refuse, tiled
from ..tiling.settings import Tiles

WINDOW_DRAWN = 2  # batches; images that are drawn on wait at full size, up to 192 MB each


@dataclass(frozen=True)
class DetectSettings:
    """How images and videos are detected on, and what is made of the detections."""

    batch: int  # images at a time
    kept: DetectionFilter = KEEP_ALL
    draws: bool = True  # write a drawn copy of each input
    max_pixels: int = MAX_PIXELS  # larger images are skipped
    max_frames: int | None = None  # of each video or stream; None: all
    tiles: Tiles | None = None  # cut larger images and frames into tiles; None: no tiles


def detect_images(
    detector: Detector,
    sources: Sequence[Source],
    out: Path,
    results: DetectionFiles,
    settings: DetectSettings,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Detect on image files, write to `results`, and draw into the folder `out`.

    `progress` is called with the number of images done since the last call. Raises OutputError where a drawn copy
    would replace one of the sources. An image that is read in strips is not drawn.
    """
    seeing: Any = tiled(detector, settings.tiles)

    def load(source: Source) -> _Loaded:
        image = seeing.load(source.path if source.data is None else source.data, settings.max_pixels)
        size_hw = image.size_hw
        canvas_hw = seeing.canvas_hw(size_hw)  # here, so that an image that the graph does not take is skipped
        prepared = seeing.prepare(image)
        if not settings.draws:
            return _Loaded(source, None, prepared, size_hw, canvas_hw)
        if isinstance(image, StripImage):
            tqdm.write(printable(f"warning: {source.path}: read in strips, so it is not drawn"), file=sys.stderr)
            return _Loaded(source, None, prepared, size_hw, canvas_hw)
        if isinstance(image, Decoded) and image.pixels.shape[:2] == size_hw:
            return _Loaded(source, image.pixels, prepared, size_hw, canvas_hw)
        # It was decoded at a fraction of its size, or lies in a GPU's memory.
        pixels = decode(source.path, max_pixels=settings.max_pixels)
        return _Loaded(source, pixels, prepared, size_hw, canvas_hw)

    def run(loaded: list[_Loaded]) -> list[dict[str, Any] | UserError]:
        found = detect_or_refuse(seeing, [one.prepared for one in loaded])
        return [
            result if isinstance(result, UserError) else finish(one, result)
            for one, result in zip(loaded, found, strict=True)
        ]

    def finish(one: _Loaded, found: Detections) -> dict[str, Any]:
        kept = settings.kept.apply(found, detector.manifest.category_ids)
        if one.image is not None:
            drawn = encode_jpeg(draw(one.image, kept, detector.classes))
            atomic_write(drawn_path(out, one.source.name), drawn)
        return {
            "file": str(one.source.path),
            **detection_row(one.size_hw, kept, detector.manifest),
        }

    if settings.draws:
        check_outputs(
            [source.path for source in sources],
            {"the drawn copy": [drawn_path(out, source.name) for source in sources]},
            "choose another folder with -o",
        )
    pipeline = pipeline_settings(detector, settings.batch, window=WINDOW_DRAWN if settings.draws else WINDOW)
    running = run_pipeline(sources, load, lambda one: one.canvas_hw, run, pipeline)
    with closing(running):
        for source, result in zip(sources, running, strict=True):
            if isinstance(result, UserError):
                results.skip(source.path, result)
            else:
                results.add(result)
            progress(1)


@dataclass(frozen=True)
class _Loaded:
    source: Source
    image: np.ndarray | None  # to draw on
    prepared: Any  # as the detector prepares it
    size_hw: tuple[int, int]  # of the image
    canvas_hw: tuple[int, int]


def drawn_path(out: Path, name: str, is_video: bool = False) -> Path:
    """Where the drawn copy of an image or a video lies in the folder `out`; `name` is without suffix."""
    return out / f"{name}{'.mp4' if is_video else '.jpg'}"
