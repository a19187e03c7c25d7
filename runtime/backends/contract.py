"""What a backend is: the interface that ONNX Runtime, OpenVINO and TensorRT share, and its errors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from ..detections import RawOutputs
from ..errors import UserError
from ..images.device_canvases import Canvases
from ..manifest import Manifest
from ..stopwatch import Stopwatch

if TYPE_CHECKING:
    from ..cuda.intake import Intake


class BackendError(UserError):
    """A file that no backend can open, a backend that isn't installed, or inputs that the graph doesn't take."""


class BatchTooLarge(BackendError):
    """Memory ran out. `fits` is the largest of batch/2, batch/4, … that fits on that canvas, None where none does."""

    def __init__(self, message: str, fits: int | None) -> None:
        super().__init__(message)
        self.fits = fits


def require_toolkit_interface(manifest: Manifest, path: str | os.PathLike[str]) -> None:
    """Raise BackendError for a model whose inputs and outputs are another program's."""
    if manifest.interface != "toolkit":
        raise BackendError(
            f"{os.fspath(path)}: made for DeepStream's nvinfer (its manifest's interface is {manifest.interface!r}); "
            "this toolkit runs the file that it was made from"
        )


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


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend that may run on images in its GPU's memory."""

    def intake(self) -> Intake | None:
        """What takes such images in, opened at the first call; None where the graph does not run on a GPU.

        Raises CudaError where CUDA cannot be opened. The intake belongs to the backend.
        """
        ...

    def infer(
        self,
        images: Canvases,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """As `Backend.infer`. Canvases whose images `intake` took are made in the GPU's memory."""
        ...
