"""A detector: pictures in, detections in their own pixels out, whatever runs the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from .backends import Backend, BackendError, open_backend
from .detections import Detections, RawOutputs, candidates, empty_detections, finish
from .manifest import Manifest
from .preprocess import Batch, boxes_to_image, check_image, make_batch, plan


class Detects(Protocol):
    """What evaluation needs of a detector."""

    @property
    def manifest(self) -> Manifest: ...

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]: ...

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]: ...


class Detector:
    """Holds a backend. Give one, or the path of a deployed model; `options` (fields of `BackendOptions`) say what is to
    run it, by default the best backend that is installed and starts (`backend.description` says which, and why).

    A context manager; closing closes the backend.
    """

    def __init__(self, source: Backend | str | os.PathLike[str], **options: Any) -> None:
        self.backend: Backend = open_backend(source, **options) if isinstance(source, str | os.PathLike) else source

    @property
    def manifest(self) -> Manifest:
        return self.backend.manifest

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """The canvas for a picture of this size: as small as it and the graph's range allow. Raises BackendError."""
        pre, shapes = self.manifest.preprocess, self.manifest.inputs
        needed = plan(image_hw, pre).canvas_hw
        height, width = max(needed[0], shapes.height_min), max(needed[1], shapes.width_min)
        if height > shapes.height_max or width > shapes.width_max:
            raise BackendError(
                f"a picture of {image_hw[1]}×{image_hw[0]} needs a canvas of {width}×{height} (sides {pre.short_side}/"
                f"{pre.long_side}), the graph was exported for at most {shapes.width_max}×{shapes.height_max}; export "
                "it for larger canvases or smaller sides"
            )
        return height, width

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each picture (uint8 [h, w, 3] RGB, any sizes) in its own pixels, clipped to it.

        Pictures that share a canvas size run together, in batches as large as the graph allows. Each has the canvas
        that it would have alone, so what is found in a picture does not depend on its neighbours.
        """
        return self._run(images, lambda raw: finish(raw, self.manifest.thresholds), all_candidates=False)

    __call__ = detect

    def candidates(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """As `detect`, before NMS: every candidate, in no particular order."""
        return self._run(images, candidates, all_candidates=True)

    def _run(
        self, images: Sequence[np.ndarray], read: Callable[[RawOutputs], list[Detections]], all_candidates: bool
    ) -> list[Detections]:
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            check_image(image, index)
            groups.setdefault(self.canvas_hw((image.shape[0], image.shape[1])), []).append(index)
        found = [empty_detections()] * len(images)
        most = self.manifest.inputs.batch_max
        for canvas_hw, members in groups.items():
            for first in range(0, len(members), most):
                rows = members[first : first + most]
                batch = [images[row] for row in rows]
                for row, detections in zip(rows, self._run_batch(batch, canvas_hw, read, all_candidates), strict=True):
                    found[row] = detections
        return found

    def _run_batch(
        self,
        images: Sequence[np.ndarray],
        canvas_hw: tuple[int, int],
        read: Callable[[RawOutputs], list[Detections]],
        all_candidates: bool,
    ) -> list[Detections]:
        batch = make_batch(images, self.manifest.preprocess, canvas_hw)
        canvas_detections = read(self._infer(batch, all_candidates))[: len(images)]
        return [
            Detections(boxes_to_image(found.boxes, geometry), found.scores, found.classes)
            for found, geometry in zip(canvas_detections, batch.geometries, strict=True)
        ]

    def _infer(self, batch: Batch, all_candidates: bool) -> RawOutputs:
        """Run the backend; a batch below the graph's least is filled up with blank canvases."""
        missing = self.manifest.inputs.batch_min - len(batch.images)
        if missing <= 0:
            return self.backend.infer(batch.images, batch.image_sizes, all_candidates=all_candidates)
        blank = np.broadcast_to(
            np.array(self.manifest.preprocess.pad_value, np.uint8), (missing, *batch.images.shape[1:])
        )
        return self.backend.infer(
            np.concatenate([batch.images, blank]),
            np.concatenate([batch.image_sizes, np.ones((missing, 2), np.int32)]),
            all_candidates=all_candidates,
        )

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
