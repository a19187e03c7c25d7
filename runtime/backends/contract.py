"""What a backend is: the interface that ONNX Runtime, OpenVINO and TensorRT share, its errors, and opening one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..command_names import TO_ONNX
from ..detections import RawOutputs
from ..errors import UserError
from ..manifest import Manifest
from ..stopwatch import Stopwatch
from .engine_file import SUFFIXES as ENGINE_SUFFIXES


class BackendError(UserError):
    """A file that no backend can open, a backend that isn't installed, or inputs that the graph doesn't take."""


class BatchTooLarge(BackendError):
    """Memory ran out. `fits` is the largest of batch/2, batch/4, … that fits on that canvas, None where none does."""

    def __init__(self, message: str, fits: int | None) -> None:
        super().__init__(message)
        self.fits = fits


class Backend(Protocol):
    """An opened graph. Several threads may call `infer` at once. The arrays that it returns belong to the caller."""

    @property
    def manifest(self) -> Manifest:
        """What the graph was exported with: classes, preprocessing, thresholds, input shapes."""
        ...

    @property
    def description(self) -> str:
        """One line for people: library, version, device."""
        ...

    @property
    def concurrency(self) -> int:
        """How many concurrent calls of `infer` are worthwhile: 2 where one call copies while another computes."""
        ...

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """Run the graph on images uint8 [B, H, W, 3] (RGB canvases) and image_sizes int32 [B, 2] (height, width).

        Candidates of images whose `nms_exact` is 1 may be left out (scores 0) unless `all_candidates`: nothing reads
        them, and they take a hundred times the bytes of the detections. `stopwatch` gets the stages "copy_in",
        "infer" and "copy_out". Raises BatchTooLarge where memory runs out; the backend stays usable.
        """
        ...

    def close(self) -> None:
        """Release what the backend holds; later calls of `infer` raise BackendError."""
        ...


def open_backend(path: str | os.PathLike[str], **options: Any) -> Backend:
    """Open a deployed model (.onnx, .engine). `options` are fields of `BackendOptions`.

    Without options the best backend that starts is taken. Raises BackendError for a file that the chosen backend, or
    every backend, can't run; ManifestError, EngineError.
    """
    from .choice import open_engine, open_onnx
    from .options import BackendOptions

    chosen, suffix = BackendOptions(**options), Path(path).suffix.lower()
    if suffix == ".onnx":
        return open_onnx(path, chosen)
    if suffix in ENGINE_SUFFIXES:
        return open_engine(path, chosen)
    if suffix in (".pt", ".pth", ".ckpt"):
        raise BackendError(f"{path}: a checkpoint must be exported first: {TO_ONNX} {path}")
    raise BackendError(f"{path}: expected a deployed model, a file named *.onnx or *.engine")
