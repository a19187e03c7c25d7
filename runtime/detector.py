"""A detector: pictures in, detections in their own pixels out, whatever runs the network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from .backends import Backend, BackendError, open_backend
from .detections import Detections, RawOutputs, finish
from .manifest import InputShapes, Manifest, Preprocess
from .preprocess import Batch, boxes_to_image, check_image, make_batch, plan


class Detector:
    """Holds a backend. Give one, or the path of a deployed model; `options` go to the backend opened for a path.

    A context manager; closing closes the backend.
    """

    def __init__(self, backend: Backend | str | os.PathLike[str], **options: Any) -> None:
        self.backend: Backend = open_backend(backend, **options) if isinstance(backend, str | os.PathLike) else backend

    @property
    def manifest(self) -> Manifest:
        return self.backend.manifest

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def canvas_hw(self, sizes_hw: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The canvas for a batch of pictures of these sizes: as small as they and the graph's range allow."""
        return _canvas(sizes_hw, self.manifest.preprocess, self.manifest.inputs)

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each picture (uint8 [h, w, 3] RGB, any sizes) in its own pixels, clipped to it.

        Pictures are run in batches as large as the graph allows. Those of one call share a canvas size per batch, so
        calls with pictures of similar shape waste least.
        """
        most = self.manifest.inputs.batch_max
        return [
            found for first in range(0, len(images), most) for found in self._detect_batch(images[first : first + most])
        ]

    __call__ = detect

    def _detect_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        pre = self.manifest.preprocess
        for index, image in enumerate(images):
            check_image(image, index)
        batch = make_batch(images, pre, self.canvas_hw([image.shape[:2] for image in images]))
        canvas_detections = finish(self._infer(batch), self.manifest.thresholds)[: len(images)]
        return [
            Detections(boxes_to_image(found.boxes, geometry), found.scores, found.classes)
            for found, geometry in zip(canvas_detections, batch.geometries, strict=True)
        ]

    def _infer(self, batch: Batch) -> RawOutputs:
        """Run the backend; a batch below the graph's least is filled up with blank canvases."""
        missing = self.manifest.inputs.batch_min - len(batch.images)
        if missing <= 0:
            return self.backend.infer(batch.images, batch.image_sizes)
        blank = np.broadcast_to(
            np.array(self.manifest.preprocess.pad_value, np.uint8), (missing, *batch.images.shape[1:])
        )
        return self.backend.infer(
            np.concatenate([batch.images, blank]),
            np.concatenate([batch.image_sizes, np.ones((missing, 2), np.int32)]),
        )

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _canvas(sizes_hw: Sequence[tuple[int, int]], pre: Preprocess, shapes: InputShapes) -> tuple[int, int]:
    plans = [plan(size_hw, pre).canvas_hw for size_hw in sizes_hw]
    height = max([shapes.height_min, *(canvas[0] for canvas in plans)])
    width = max([shapes.width_min, *(canvas[1] for canvas in plans)])
    if height > shapes.height_max or width > shapes.width_max:
        raise BackendError(
            f"these pictures need a canvas of {width}×{height} (sides {pre.short_side}/{pre.long_side}), the graph was "
            f"exported for at most {shapes.width_max}×{shapes.height_max}; export it for larger or smaller sides"
        )
    return height, width
