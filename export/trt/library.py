"""The TensorRT library to build with: the standard one needs a GPU, TensorRT for RTX builds on any machine."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from runtime.backends import BackendError
from runtime.backends.engine_file import Flavor, library_name
from runtime.backends.trt.engine import import_tensorrt
from runtime.cuda import CudaError, Device, open_cuda
from runtime.errors import UserError
from runtime.names import unknown_name

_AHEAD = "--flavor rtx --compute-capability 8.6 8.9 12.0"


class LibraryError(UserError):
    """The library or the GPU that a build needs is missing."""


@dataclasses.dataclass(frozen=True)
class Library:
    """An imported TensorRT library, and this machine's GPU if it has one."""

    flavor: Flavor
    trt: Any
    device: Device | None

    @property
    def version(self) -> str:
        """The library's version, such as "10.12.0.36"."""
        return str(self.trt.__version__)

    @property
    def name(self) -> str:
        """The library's name in messages."""
        return library_name(self.flavor)


def choose_library(flavor: Literal["auto"] | Flavor, compute_capabilities: tuple[str, ...] = ()) -> Library:
    """The library to build with. `auto` is the standard one where there is a GPU and no compute capability is named.

    Raises LibraryError, which says what is missing and what to do instead.
    """
    device, reason = detect_gpu()
    missing = ""
    match flavor:
        case "auto":
            is_standard = device is not None and not compute_capabilities
        case "tensorrt":
            is_standard = True
        case "rtx":
            is_standard = False
        case _:
            unknown_name(flavor, "--flavor", Literal["auto", "tensorrt", "rtx"])
    if is_standard:
        if compute_capabilities:
            raise LibraryError(
                "--compute-capability: a standard engine fits only the GPU that builds it; leave the option out, or "
                f"build ahead of time: {_AHEAD}"
            )
        if device is None:
            raise LibraryError(
                f"a standard TensorRT engine is built on the GPU that runs it, and none was found here ({reason}); "
                f"copy the .onnx file there and run this command on it, or build for RTX GPUs here: {_AHEAD}"
            )
        try:
            return Library("tensorrt", import_tensorrt("tensorrt"), device)
        except BackendError as error:
            if flavor == "tensorrt":
                raise LibraryError(f"{error}; or build for RTX GPUs with TensorRT for RTX: {_AHEAD}") from error
            missing = f"{error}; or: "
    try:
        return Library("rtx", import_tensorrt("rtx"), device)
    except BackendError as error:
        raise LibraryError(f"{missing}{error}; it builds engines on any machine, for RTX GPUs: {_AHEAD}") from error


def detect_gpu() -> tuple[Device | None, str]:
    """This machine's first GPU and an empty string; or None and the reason."""
    try:
        cuda = open_cuda()
    except CudaError as error:
        return None, str(error).split(";")[0]
    try:
        return cuda.device, ""
    finally:
        cuda.close()
