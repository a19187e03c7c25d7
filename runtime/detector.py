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
from typing import Any, TypeAlias, overload

import numpy as np
from PIL.Image import Image as PillowImage

from .backends import Backend, BackendError, BatchTooLarge
from .backends.choice import backend_of
from .backends.receiving import Receiver
from .batch_settings import pipeline_settings, resolve_batch
from .batching import batches_by, cut
from .decoders import Decode, decoder_for
from .detections import (
    Detections,
    RawOutputs,
    concatenate_outputs,
    empty_detections,
    first_images,
    nms_candidates,
    read_outputs,
)
from .errors import UserError
from .images import MAX_PIXELS, Decoded, whole
from .images.decoding import decode_by
from .images.device_array import DeviceImage, ForeignArray, dims_of, is_foreign_array
from .images.device_canvases import Canvases, join_canvases
from .images.inputs import Encoded, is_encoded, is_one, require_images, require_several, take, take_encoded
from .images.nvimgcodec import NvImageCodec
from .images.preprocess import (
    Batch,
    DeviceBatch,
    boxes_to_image,
    check_image,
    full_size,
    join_batches,
    load,
    make_batch,
    place_batch,
    plan,
)
from .manifest import Manifest, Preprocess
from .pipeline import run_pipeline
from .stopwatch import Stopwatch

# uint8 [h, w, 3] RGB of NumPy, Pillow or another library, also in a GPU's memory, or what `preprocess.load` gave.
Pixels: TypeAlias = "np.ndarray | Decoded | DeviceImage | ForeignArray | PillowImage"
Image: TypeAlias = "Pixels | Encoded"  # or a file, its bytes, or its path
_log = logging.getLogger(__name__)

WAIT_S = 0.5  # default; seconds that an image of a stream waits for its batch to fill


class Detector:
    """Runs a deployed model on images. A context manager; closing it closes the backend.

    `source` is the path of a deployed model, or an open backend. With a path, `options` are fields of `BackendOptions`;
    by default a GPU is taken if the model starts on one, else the faster backend on the CPU, as `open_backend` says
    (`backend.description` says which, and why).
    `decode` is what reads image files: another decoder than OpenCV needs the model's path, and that `export.verify` has
    measured the model's AP with it; an opened one is taken as it is. Raises BackendError, ManifestError or EngineError
    if the model cannot be opened, UserError for a decoder that was not measured.

    Any number of threads may use one detector; the backend is called from as many threads at once as it gains from. If
    memory does not hold a batch, the batch and all later batches of that canvas run in smaller pieces, which is logged.
    """

    def __init__(
        self, source: Backend | str | os.PathLike[str], *, decode: Decode | NvImageCodec = "opencv", **options: Any
    ) -> None:
        self.backend: Backend = backend_of(source, **options)
        self._receiver = Receiver(self.backend)
        model = source if isinstance(source, str | os.PathLike) else None
        try:
            self._decoder = decoder_for(decode, model, self.manifest, self._receiver)
        except BaseException:
            if model is not None:
                self.backend.close()
            raise
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
    def __call__(self, images: Encoded) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: np.ndarray | ForeignArray | PillowImage) -> Detections: ...

    @overload
    def __call__(self, images: Sequence[Image]) -> list[Detections]: ...

    @overload
    def __call__(self, images: Iterator[Image]) -> Iterator[Detections | UserError]: ...

    def __call__(self, images: Any) -> Any:
        """Detections of one image, a list of detections for a sequence of images, or a `stream` for an iterator.

        An image is the path of a file, its bytes, or an open file; Pillow's image; or an array, uint8 [h, w, 3] RGB or
        [3, h, w]. An array may be another library's and lie in a GPU's memory (DLPack, CUDA array interface): a backend
        on that GPU resizes it there. Raises ImageError if an image cannot be read, UserError for a value that is no
        image; in a stream the error takes the image's place.
        """
        require_images(images)
        if not is_one(images) and is_foreign_array(images) and dims_of(images) == 4:
            images = self._receiver.images(images)
        elif is_one(images) or is_foreign_array(images):
            return self.detect([self.load(images) if is_encoded(images) else images])[0]
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

        Arrays of another library in a list or tuple must be made in the thread that iterates here: a library's current
        CUDA stream is a thread's. Anything else, also another kind of sequence, is read bit by bit in a thread of its
        own, and must make such arrays in it. Raises UserError for a value that cannot be several images.
        """
        require_several(images)
        return self._stream(images, batch, wait_s)

    def _stream(
        self, images: Iterable[Image], batch: int | None, wait_s: float | None
    ) -> Generator[Detections | UserError, None, None]:
        settings = pipeline_settings(self, resolve_batch([self.manifest.inputs], batch), wait_s=wait_s)
        source: Iterable[tuple[int, Any]] = self._received(images)
        if isinstance(images, list | tuple):  # another sequence may make its images as it is read
            source = list(source)
        running = run_pipeline(source, self._load, lambda one: one.canvas_hw, self.detect_prepared, settings)
        with closing(running):
            yield from running

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """Detections of each image (loaded, or uint8 [h, w, 3] RGB; any sizes) in its own pixels, clipped to it.

        Images that share a canvas size run together, in batches as large as the graph allows. Each image gets the
        canvas that it would get alone, so its detections do not depend on the other images.
        """
        return self._run(images, lambda raw: read_outputs(raw, self.manifest), all_candidates=False)

    def detect_candidates(self, images: Sequence[Pixels]) -> list[Detections]:
        """As `detect`, but without NMS: all candidates, in no particular order."""
        return self._run(images, nms_candidates, all_candidates=True)

    def load(self, source: Encoded, max_pixels: int = MAX_PIXELS, whole_size: bool = False) -> Decoded | DeviceImage:
        """An image file, open or not, or its bytes, decoded as it was told to, or (`whole_size`) to all pixels."""
        source = take_encoded(source)
        if self._decoder is None:
            return load(source, None if whole_size else self.load_preprocess, max_pixels=max_pixels)
        found = self.receive(decode_by(self._decoder, source, max_pixels=max_pixels))
        return whole(found) if isinstance(found, np.ndarray) else found

    def receive(self, image: Image, number: int = 0) -> Any:
        """An array of another library as NumPy's, or as a DeviceImage if the backend runs on its GPU.

        Pillow's image becomes an array, an open file its bytes; others are returned as given. Call it in the thread
        that produced the image. Raises UserError that names the image by `number`.
        """
        return self._receiver.image(take(image, number), number)

    @overload
    def prepare(self, image: np.ndarray | Decoded, number: int = 0) -> Batch: ...

    @overload
    def prepare(self, image: DeviceImage | ForeignArray, number: int = 0) -> Batch | DeviceBatch: ...

    def prepare(self, image: Any, number: int = 0) -> Batch | DeviceBatch:
        """An image (loaded, or uint8 [h, w, 3] RGB) on its own canvas. Raises UserError that names it by `number`."""
        image = self.receive(image, number)
        check_image(image, number)
        make = place_batch if isinstance(image, DeviceImage) else make_batch
        return make([image], self.manifest.preprocess, self.canvas_hw(full_size(image)))

    def detect_prepared(
        self, images: Sequence[Batch | DeviceBatch], stopwatch: Stopwatch | None = None
    ) -> list[Detections]:
        """Detections of prepared images that share a canvas size, in the pixels of each image.

        `stopwatch` gets the backend's stages, "network" (the backend's call as a whole) and "postprocess". Raises
        UserError for images in a GPU's memory that another detector prepared.
        """
        self._receiver.require_own(images)
        stopwatch = stopwatch or Stopwatch()
        found: list[Detections] = []
        for piece in cut(images, self.manifest.inputs.batch_max):
            batch = join_batches(piece)
            raw = self._infer(batch, all_candidates=False, stopwatch=stopwatch)
            with stopwatch.measure("postprocess"):
                found += _in_images(read_outputs(raw, self.manifest), batch)
        return found

    def _received(self, images: Iterable[Image]) -> Iterator[tuple[int, Any]]:
        """Numbered images, each received before the source goes on; an image's error takes its place."""
        for number, image in enumerate(images):
            received: Any
            try:
                received = self.receive(image, number)
            except UserError as error:
                received = error
            yield number, received

    def _load(self, numbered: tuple[int, Any]) -> Batch | DeviceBatch:
        number, image = numbered
        if isinstance(image, UserError):
            raise image
        return self.prepare(self.load(image) if is_encoded(image) else image, number)

    def _run(
        self,
        images: Sequence[Pixels],
        read: Callable[[RawOutputs], list[Detections]],
        all_candidates: bool,
    ) -> list[Detections]:
        received = [self.receive(image, index) for index, image in enumerate(images)]

        def canvas_hw(index: int) -> tuple[int, int]:
            check_image(received[index], index)
            return self.canvas_hw(full_size(received[index]))

        found = [empty_detections()] * len(images)
        for canvas, rows in batches_by(range(len(images)), canvas_hw, self.manifest.inputs.batch_max):
            members = [received[row] for row in rows]
            make = place_batch if any(isinstance(image, DeviceImage) for image in members) else make_batch
            batch = make(members, self.manifest.preprocess, canvas)
            raw = self._infer(batch, all_candidates)
            for row, detections in zip(rows, _in_images(read(raw), batch), strict=True):
                found[row] = detections
        return found

    def _infer(
        self, batch: Batch | DeviceBatch, all_candidates: bool, stopwatch: Stopwatch | None = None
    ) -> RawOutputs:
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
        self, images: Canvases, image_sizes: np.ndarray, all_candidates: bool, stopwatch: Stopwatch
    ) -> RawOutputs:
        """One call of the backend; a batch below the graph's minimum is filled up with blank canvases for the call."""
        missing = self.manifest.inputs.batch_min - len(images)
        if missing > 0:
            pad_value = np.array(self.manifest.preprocess.pad_value, np.uint8)
            images = join_canvases([images, np.broadcast_to(pad_value, (missing, *images.shape[1:]))])
            image_sizes = np.concatenate([image_sizes, np.ones((missing, 2), np.int32)])
        with self._turn, stopwatch.measure("network"):
            infer: Any = self.backend.infer  # a backend whose intake took an image takes its canvas too
            raw = infer(images, image_sizes, all_candidates=all_candidates, stopwatch=stopwatch)
        return first_images(raw, len(images) - missing) if missing > 0 else raw

    def close(self) -> None:
        """Close the backend; the detector cannot be used any more."""
        self._receiver.close()
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _in_images(found: Sequence[Detections], batch: Batch | DeviceBatch) -> list[Detections]:
    """Detections in canvas pixels, moved to the pixels of each image."""
    return [
        Detections(boxes_to_image(detections.boxes, geometry), detections.scores, detections.classes)
        for detections, geometry in zip(found, batch.geometries, strict=True)
    ]


def _found(result: Detections | UserError) -> Detections:
    if isinstance(result, UserError):
        raise result
    return result
