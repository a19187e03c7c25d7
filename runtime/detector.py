"""The detector: takes images, returns detections in image pixels, whatever backend runs the network.

with Detector("model.onnx") as detector:
    found = detector("photo.jpg")
    for found in detector.stream(Path("photos").glob("*.jpg")): …
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar, overload

import numpy as np

from .backends import Backend, BackendError, BatchTooLarge, open_backend
from .batching import batches_by, cut
from .detections import (
    Detections,
    RawOutputs,
    concatenate_outputs,
    empty_detections,
    first_images,
    nms_candidates,
    postprocess,
)
from .errors import UserError
from .images import Decoded
from .images.preprocess import Batch, as_decoded, boxes_to_image, check_image, load, make_batch, plan
from .machine.processor import processors
from .manifest import InputShapes, Manifest, Preprocess
from .pipeline import PipelineSettings, run_pipeline
from .stopwatch import Stopwatch

# uint8 [h, w, 3] RGB, what `preprocess.load` gave, or a JPEG or PNG file.
Image: TypeAlias = "np.ndarray | Decoded | str | os.PathLike[str]"
Prepared = TypeVar("Prepared")

_log = logging.getLogger(__name__)

BATCH = 8  # default
WAIT_S = 0.5  # default; seconds that an image of a stream waits for its batch to fill
WINDOW = 8  # batches; COCO's images have some twenty canvases, and their batches should fill up


class DetectorProtocol(Protocol[Prepared]):
    """What evaluation needs of a detector. `prepare` and `detect_prepared` may be called from several threads."""

    @property
    def manifest(self) -> Manifest:
        """The deployed model's manifest."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls of `detect_prepared` gain from running at once."""
        ...

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the canvas for an image of this size. Raises BackendError if the graph takes none."""
        ...

    @property
    def load_preprocess(self) -> Preprocess | None:
        """Preprocessing that files are loaded for (`preprocess.load`), so that pixels equal training's. None: all."""
        ...

    def prepare(self, image: np.ndarray | Decoded) -> Prepared:
        """Do the work that an image needs before its batch is known."""
        ...

    def detect_prepared(self, images: Sequence[Prepared], stopwatch: Stopwatch | None = None) -> list[Detections]:
        """Detections of prepared images, which share a canvas; the stages are added to `stopwatch`."""
        ...


class Detector:
    """Runs a deployed model on images. A context manager; closing it closes the backend.

    `source` is the path of a deployed model, or an open backend. With a path, `options` are fields of `BackendOptions`;
    by default the best backend that is installed and starts is taken (`backend.description` says which, and why).
    Raises BackendError, ManifestError or EngineError if the model cannot be opened.

    Any number of threads may use one detector; the backend is called from as many threads at once as it gains from. If
    memory does not hold a batch, the batch and all later batches of that canvas run in smaller pieces, which is logged.
    """

    def __init__(self, source: Backend | str | os.PathLike[str], **options: Any) -> None:
        self.backend: Backend = open_backend(source, **options) if isinstance(source, str | os.PathLike) else source
        self._turn = threading.BoundedSemaphore(max(1, self.backend.concurrency))
        self._fitting: dict[tuple[int, int], int] = {}  # by canvas: the largest batch, where memory set one
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """Classes, preprocessing, thresholds and shapes of the model."""
        return self.backend.manifest

    @property
    def concurrency(self) -> int:
        """How many batches the backend gains from running at once."""
        return self.backend.concurrency

    @property
    def load_preprocess(self) -> Preprocess | None:
        """The manifest's preprocessing: a large JPEG is decoded at the size that training decoded it at."""
        return self.manifest.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by class index."""
        return self.manifest.classes

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the smallest canvas for an image of this size. Raises BackendError if none fits."""
        pre, shapes = self.manifest.preprocess, self.manifest.inputs
        needed = plan(image_hw, pre).canvas_hw
        canvas_hw = shapes.canvas_for(needed)
        if canvas_hw is None:
            (height, width), (most_h, most_w) = needed, shapes.largest_canvas
            raise BackendError(
                f"an image of {image_hw[1]}×{image_hw[0]} needs a canvas of {width}×{height} (sides {pre.short_side}/"
                f"{pre.long_side}), the graph was exported for at most {most_w}×{most_h}; export "
                "it for larger canvases or smaller sides"
            )
        return canvas_hw

    @overload
    def __call__(self, images: str | os.PathLike[str]) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: np.ndarray) -> Detections: ...

    @overload
    def __call__(self, images: Sequence[Image]) -> list[Detections]: ...

    @overload
    def __call__(self, images: Iterator[Image]) -> Iterator[Detections | UserError]: ...

    def __call__(self, images: Any) -> Any:
        """Detections of one image, a list of detections for a sequence of images, or a `stream` for an iterator.

        An image is an array (uint8 [h, w, 3] RGB) or the path of a file. Raises ImageError if an image cannot be read;
        in a stream the error takes the image's place.
        """
        if isinstance(images, str | os.PathLike):
            return self.detect([load(images, self.load_preprocess)])[0]
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return self.detect([images])[0]
        results = self.stream(images)
        if not isinstance(images, Sequence | np.ndarray):
            return results
        with closing(results):
            return [_found(result) for result in results]

    def stream(
        self, images: Iterable[Image], batch: int | None = None, wait_s: float | None = WAIT_S
    ) -> Generator[Detections | UserError, None, None]:
        """Detections of each image of a stream, lazily and in order; an unusable image gives its UserError instead.

        Decoding, resizing, network and postprocessing run concurrently, and memory holds few images at a time. Images
        that share a canvas size run in batches of `batch` (8, or what the graph allows). If the stream is slow, an
        image waits at most `wait_s` seconds for its batch to fill (None: no limit). Closing the iterator ends the work.
        """
        settings = pipeline_settings(self, resolve_batch([self.manifest.inputs], batch), wait_s=wait_s)
        running = run_pipeline(enumerate(images), self._load, lambda one: one.canvas_hw, self.detect_prepared, settings)
        with closing(running):
            yield from running

    def detect(self, images: Sequence[np.ndarray | Decoded]) -> list[Detections]:
        """Detections of each image (loaded, or uint8 [h, w, 3] RGB; any sizes) in its own pixels, clipped to it.

        Images that share a canvas size run together, in batches as large as the graph allows. Each image gets the
        canvas that it would get alone, so its detections do not depend on the other images.
        """
        return self._run(images, lambda raw: postprocess(raw, self.manifest.thresholds), all_candidates=False)

    def detect_candidates(self, images: Sequence[np.ndarray | Decoded]) -> list[Detections]:
        """As `detect`, but without NMS: all candidates, in no particular order."""
        return self._run(images, nms_candidates, all_candidates=True)

    def prepare(self, image: np.ndarray | Decoded, number: int = 0) -> Batch:
        """An image (loaded, or uint8 [h, w, 3] RGB) on its own canvas. Raises UserError that names it by `number`."""
        check_image(image, number)
        return make_batch([image], self.manifest.preprocess, self.canvas_hw(as_decoded(image).size_hw))

    def detect_prepared(self, images: Sequence[Batch], stopwatch: Stopwatch | None = None) -> list[Detections]:
        """Detections of prepared images that share a canvas size, in the pixels of each image.

        `stopwatch` gets the backend's stages, "network" (the backend's call as a whole) and "postprocess".
        """
        stopwatch = stopwatch or Stopwatch()
        found: list[Detections] = []
        for piece in cut(images, self.manifest.inputs.batch_max):
            batch = join_batches(piece)
            raw = self._infer(batch, all_candidates=False, stopwatch=stopwatch)
            with stopwatch.measure("postprocess"):
                found += _in_images(postprocess(raw, self.manifest.thresholds), batch)
        return found

    def _load(self, numbered: tuple[int, Image]) -> Batch:
        number, image = numbered
        return self.prepare(
            load(image, self.load_preprocess) if isinstance(image, str | os.PathLike) else image, number
        )

    def _run(
        self,
        images: Sequence[np.ndarray | Decoded],
        read: Callable[[RawOutputs], list[Detections]],
        all_candidates: bool,
    ) -> list[Detections]:
        def canvas_hw(index: int) -> tuple[int, int]:
            check_image(images[index], index)
            return self.canvas_hw(as_decoded(images[index]).size_hw)

        found = [empty_detections()] * len(images)
        for canvas, rows in batches_by(range(len(images)), canvas_hw, self.manifest.inputs.batch_max):
            batch = make_batch([images[row] for row in rows], self.manifest.preprocess, canvas)
            raw = self._infer(batch, all_candidates)
            for row, detections in zip(rows, _in_images(read(raw), batch), strict=True):
                found[row] = detections
        return found

    def _infer(self, batch: Batch, all_candidates: bool, stopwatch: Stopwatch | None = None) -> RawOutputs:
        """Run the backend; in smaller pieces if memory has proved too small, which changes no result."""
        count, canvas_hw = len(batch.images), batch.canvas_hw
        most = min(count, self._fitting.get(canvas_hw, count))
        taken = Stopwatch()  # of this attempt: one that fails is no part of the network's time
        try:
            pieces = [
                self._infer_at_once(batch.images[rows], batch.image_sizes[rows], all_candidates, taken)
                for rows in (slice(first, first + most) for first in range(0, count, most))
            ]
        except BatchTooLarge as error:
            if error.fits is None or error.fits >= most:
                raise
            with self._lock:
                before = self._fitting.get(canvas_hw, count)
                self._fitting[canvas_hw] = min(before, error.fits)
            if error.fits < before:
                _log.warning("warning: %s; continuing with batches of at most %d on this canvas", error, error.fits)
            return self._infer(batch, all_candidates, stopwatch)
        if stopwatch is not None:
            stopwatch.merge(taken)
        return pieces[0] if len(pieces) == 1 else concatenate_outputs(pieces)

    def _infer_at_once(
        self, images: np.ndarray, image_sizes: np.ndarray, all_candidates: bool, stopwatch: Stopwatch
    ) -> RawOutputs:
        """One call of the backend; a batch below the graph's minimum is filled up with blank canvases for the call."""
        missing = self.manifest.inputs.batch_min - len(images)
        if missing > 0:
            pad_value = np.array(self.manifest.preprocess.pad_value, np.uint8)
            images = np.concatenate([images, np.broadcast_to(pad_value, (missing, *images.shape[1:]))])
            image_sizes = np.concatenate([image_sizes, np.ones((missing, 2), np.int32)])
        with self._turn, stopwatch.measure("network"):
            raw = self.backend.infer(images, image_sizes, all_candidates=all_candidates, stopwatch=stopwatch)
        return first_images(raw, len(images) - missing) if missing > 0 else raw

    def close(self) -> None:
        """Close the backend; the detector cannot be used any more."""
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def resolve_batch(shapes: Sequence[InputShapes], asked: int | None, usual: int = BATCH) -> int:
    """The batch for graphs of these shapes: `asked`, or else the batch nearest to `usual` that all of them take.

    Raises BackendError if a graph does not take `asked`, or no batch suits all graphs.
    """
    low, high = max(one.batch_min for one in shapes), min(one.batch_max for one in shapes)
    if low > high:
        raise BackendError(f"no batch suits all graphs: one takes {low} or more, one at most {high}; export one again")
    if asked is None:
        return max(low, min(usual, high))
    if not low <= asked <= high:
        expected = f"{low}" if low == high else f"{low} to {high}"
        raise BackendError(f"batch {asked}, but the graph was exported for {expected}; choose that or export it again")
    return asked


def pipeline_settings(
    detector: DetectorProtocol[Any], batch: int, wait_s: float | None = None, window: int = WINDOW
) -> PipelineSettings:
    """Settings that keep this detector busy: batches are ready before it needs them, and all processors load images.

    `window` is in batches: an image waits for its batch to fill until that many batches' images have overtaken it.
    """
    return PipelineSettings(
        batch=batch,
        window=window * batch,
        wait_s=wait_s,
        loaders=min(16, processors()),
        runners=max(1, detector.concurrency) + 1,  # one more assembles or postprocesses its batch meanwhile
    )


def join_batches(parts: Sequence[Batch]) -> Batch:
    """One batch of several that share a canvas size."""
    if len(parts) == 1:
        return parts[0]
    return Batch(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.image_sizes for part in parts]),
        tuple(geometry for part in parts for geometry in part.geometries),
    )


def _in_images(found: Sequence[Detections], batch: Batch) -> list[Detections]:
    """Detections in canvas pixels, moved to the pixels of each image."""
    return [
        Detections(boxes_to_image(detections.boxes, geometry), detections.scores, detections.classes)
        for detections, geometry in zip(found, batch.geometries, strict=True)
    ]


def _found(result: Detections | UserError) -> Detections:
    if isinstance(result, UserError):
        raise result
    return result
