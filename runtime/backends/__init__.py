"""What runs a deployed graph. A backend's library is imported when that backend is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..detections import RawOutputs
from ..errors import UserError
from ..manifest import Manifest


class BackendError(UserError):
    """A file that no backend can open, a backend that is not installed, or a feed that the graph doesn't take."""


class Backend(Protocol):
    """An opened graph. The arrays that `infer` returns belong to the caller."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def description(self) -> str:
        """One line: library, version, device."""
        ...

    def infer(self, images: np.ndarray, image_sizes: np.ndarray) -> RawOutputs:
        """Run on images uint8 [B, H, W, 3] (RGB canvases) and image_sizes int32 [B, 2] (height, width on them)."""
        ...

    def close(self) -> None: ...


def open_backend(path: str | os.PathLike[str], **options: Any) -> Backend:
    """Open an artifact with the backend that its suffix calls for, which gets `options`. Raises BackendError."""
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        from .ort import OrtBackend

        return OrtBackend(path, **options)
    if suffix in (".engine", ".plan", ".trt"):
        raise BackendError(f"{path}: this version does not run TensorRT engines; give the .onnx file it was built from")
    if suffix in (".pt", ".pth", ".ckpt"):
        raise BackendError(f"{path}: a checkpoint must be exported first: python export/to_onnx.py {path}")
    raise BackendError(f"{path}: expected a deployed model, a file named *.onnx")
