"""What runs a deployed graph. A backend's library is imported when that backend is opened."""

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
    """A file that no backend can open, a backend that is not installed, or a feed that the graph doesn't take."""


class BatchTooLarge(BackendError):
    """Memory ran out; `fits` is the largest halved batch of that canvas that fits, None where none does."""

    def __init__(self, message: str, fits: int | None) -> None:
        super().__init__(message)
        self.fits = fits


class Backend(Protocol):
    """An opened graph. `infer` may be called from several threads; the arrays that it returns belong to the caller."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def description(self) -> str:
        """One line: library, version, device."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls of `infer` gain from running at once: 2 where copies of one hide behind another's work."""
        ...

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """Run on images uint8 [B, H, W, 3] (RGB canvases) and image_sizes int32 [B, 2] (height, width on them).

        Candidates of images whose `nms_exact` is 1 may be left out (scores 0) unless `all_candidates`: nothing reads
        them, and they are a hundred times the detections' bytes. `stopwatch` gets the stages "copy_in",
        "infer" and "copy_out". Raises BatchTooLarge where memory runs out; the backend stays usable.
        """
        ...

    def close(self) -> None: ...


def open_backend(path: str | os.PathLike[str], **options: Any) -> Backend:
    """Open an artifact; `options` are fields of `options.BackendOptions`, by default the best backend that starts.

    Raises BackendError for a file that no backend runs, or one that the chosen backend doesn't; ManifestError,
    EngineError.
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
