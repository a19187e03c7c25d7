"""The detector that sees a large image tile by tile.

with Detector("model.onnx") as detector:
    found = TiledDetector(detector, Tiles(640)).detect([image])[0]
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..batch_settings import resolve_batch
from ..batching import cut
from ..bounds import bounds_of
from ..detections import Detections, empty_detections
from ..detector import Detector, Image
from ..detector_protocol import DetectorProtocol
from ..errors import UserError
from ..images import MAX_PIXELS, Decoded, ImageError
from ..images.crop import crop
from ..images.device_array import DeviceImage
from ..images.headers import Header, opened, read_header
from ..images.inputs import Encoded, is_encoded, take_encoded
from ..images.preprocess import check_image, full_size
from ..images.strips import StripImage, open_strips
from ..manifest import Preprocess
from ..stopwatch import Stopwatch
from .grid import Window, tile_rows, whole_window
from .merge import merge_tiles
from .settings import Overlap, Tiles, TileSide
from .streaming import streamed_views

Pixels: TypeAlias = "np.ndarray | Decoded | DeviceImage | StripImage"


class Seeing(Protocol):
    """What detects on the tiles where the detector itself does not: it sees each tile at several sizes."""

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the canvas for an image of this size. Raises BackendError if the graph takes none."""
        ...

    @property
    def load_preprocess(self) -> Preprocess | None:
        """Preprocessing that files are loaded for; None: all pixels."""
        ...

    @property
    def finest_preprocess(self) -> Preprocess:
        """Preprocessing of the largest size that images are seen at."""
        ...

    def detect(self, images: Sequence[Any]) -> list[Detections]:
        """Detections of each image, in its pixels."""
        ...


class TiledDetector:
    """Detects on tiles of images with `detector`, which stays open and usable, and merges the detections.

    An image that no side of which exceeds `tiles.side` gives what the detector alone gives. Otherwise tiles that share
    a canvas run in batches, also those of several images, and the whole image is one more tile. `seeing` is what
    detects on a tile, by default `detector`, which reads files in any case. Raises UserError for tiles that make no
    sense, BackendError for a batch that the graph does not take.
    """

    def __init__(self, detector: Detector, tiles: Tiles, seeing: Seeing | None = None) -> None:
        for name, value, kind in (("side", tiles.side, TileSide), ("overlap", tiles.overlap, Overlap)):
            if not bounds_of(kind).holds(value):
                raise UserError(f"tiles with {name} {value}, expected {bounds_of(kind).expected}")
        self.manifest = detector.manifest
        self.backend = detector.backend
        self.tiles = tiles
        self._detector = detector
        self._seeing: Detector | Seeing = detector if seeing is None else seeing
        self._finest = detector.manifest.preprocess if seeing is None else seeing.finest_preprocess
        self._batch = resolve_batch([self.manifest.inputs], tiles.batch)

    @property
    def concurrency(self) -> int:
        """How many batches the backend gains from running at once."""
        return self._detector.concurrency

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by class index."""
        return self.manifest.classes

    @property
    def load_preprocess(self) -> Preprocess | None:
        """None: the tiles share all pixels of the image. `load` reads images that are not cut as the detector does."""
        return None

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """The canvas of the image's tiles. Raises BackendError if the graph does not take it, or the whole image's."""
        if self.tiles.whole:
            self._seeing.canvas_hw(image_hw)
        return self._seeing.canvas_hw(tile_rows(image_hw, self.tiles.side, self.tiles.overlap)[0][0].size_hw)

    def is_cut(self, image_hw: tuple[int, int]) -> bool:
        """Whether an image of this size is cut into tiles."""
        return max(image_hw) > self.tiles.side

    def load(self, source: Encoded, max_pixels: int = MAX_PIXELS) -> Decoded | DeviceImage | StripImage:
        """An image file, open or not, or its bytes; larger than `max_pixels` it is read in strips while it is detected.

        Raises ImageError, also for a larger image of a format that cannot be read in strips.
        """
        source = take_encoded(source)
        header = _header(source)
        if not self.is_cut(header.size_hw):
            if self._seeing.load_preprocess is None:
                return self._detector.load(source, max_pixels, whole_size=True)
            return self._detector.load(source, max_pixels)
        if header.stored_hw[0] * header.stored_hw[1] > max_pixels:
            strips = open_strips(source, header, max_pixels)
            if strips is not None:
                return strips
        return self._detector.load(source, max_pixels, whole_size=True)

    def prepare(self, image: Any) -> Any:
        """The image itself: its tiles would fill more memory. Raises UserError for a value that is no image."""
        return self._received(image, 0)

    def detect_prepared(self, images: Sequence[Pixels], stopwatch: Stopwatch | None = None) -> list[Detections]:
        """As `detect`; all time counts as the network's time."""
        with (stopwatch or Stopwatch()).measure("network"):
            return self._detect(images)

    def detect(self, images: Sequence[Image | StripImage]) -> list[Detections]:
        """Detections of each image in its own pixels; images are as for `Detector`. Raises UserError."""
        return self._detect([self._received(image, number) for number, image in enumerate(images)])

    def __call__(self, image: Image) -> Detections:
        """Detections of one image: a file, open or not, its bytes, or what `detect` takes."""
        return self.detect([image])[0]

    def _received(self, image: Any, number: int) -> Pixels:
        if is_encoded(image):
            return self.load(image)
        if not isinstance(image, StripImage):
            image = self._detector.receive(image, number)
            check_image(image, number)
        return image

    def _detect(self, images: Sequence[Pixels]) -> list[Detections]:
        sizes = [image.size_hw if isinstance(image, StripImage) else full_size(image) for image in images]
        found = [empty_detections()] * len(images)
        uncut = [number for number, size_hw in enumerate(sizes) if not self.is_cut(size_hw)]
        for members in cut(uncut, self._batch):
            whole: list[Any] = [images[number] for number in members]  # none is read in strips
            for number, detections in zip(members, self._seeing.detect(whole), strict=True):
                found[number] = detections
        parts: list[list[tuple[Window, Detections]]] = [[] for _ in images]
        waiting: dict[tuple[int, int], list[tuple[int, Window, Any]]] = {}  # by canvas

        def run(views: list[tuple[int, Window, Any]]) -> None:
            results = self._seeing.detect([pixels for _, _, pixels in views])
            for (number, window, _), detections in zip(views, results, strict=True):
                parts[number].append((window, detections))
            views.clear()

        for number, image in enumerate(images):
            if not self.is_cut(sizes[number]):
                continue
            for window, pixels in self._views(image, sizes[number]):
                views = waiting.setdefault(self._seeing.canvas_hw(window.size_hw), [])
                views.append((number, window, pixels))
                if len(views) == self._batch:
                    run(views)
        for views in waiting.values():
            run(views)
        for number, size_hw in enumerate(sizes):
            if self.is_cut(size_hw):
                # In the order of the tiles, whatever ran with them.
                ordered = sorted(parts[number], key=lambda part: (part[0].size_hw == size_hw, part[0].y1, part[0].x1))
                found[number] = merge_tiles(ordered, size_hw, self.manifest.thresholds, self.tiles)
        return found

    def _views(self, image: Pixels, image_hw: tuple[int, int]) -> Iterator[tuple[Window, Any]]:
        """The tiles, row by row, and then the whole image."""
        rows = tile_rows(image_hw, self.tiles.side, self.tiles.overlap)
        if isinstance(image, StripImage):
            yield from streamed_views(image, rows, self._finest if self.tiles.whole else None)
            return
        for window in (window for row in rows for window in row):
            yield window, crop(image, *window)
        if self.tiles.whole:
            yield whole_window(image_hw), image


def tiled(detector: Detector, tiles: Tiles | None) -> Detector | TiledDetector:
    """The detector as the settings ask for it: itself, or one that cuts images into tiles."""
    return detector if tiles is None else TiledDetector(detector, tiles)


def detect_or_refuse(
    detector: DetectorProtocol[Any], images: Sequence[Any], stopwatch: Stopwatch | None = None
) -> list[Detections | ImageError]:
    """As `detector.detect_prepared`, but a damaged image gives its error, and the others their detections.

    An image that is read in strips shows its damage only here; all others show it when they are loaded.
    """
    try:
        return list(detector.detect_prepared(images, stopwatch))
    except ImageError as error:
        if len(images) == 1:
            return [error]
    return [result for image in images for result in detect_or_refuse(detector, [image], stopwatch)]


def _header(source: str | os.PathLike[str] | bytes) -> Header:
    if isinstance(source, bytes):
        return read_header(io.BytesIO(source), "image data")
    with opened(source) as file:
        return read_header(file, os.fspath(Path(source)))
