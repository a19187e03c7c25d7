"""The interface to CUDA that two bindings share, and the errors of both.

Handles (memory, streams, events, graphs) are opaque objects of the binding. They are passed back into the methods here;
`address` turns one into the number that TensorRT takes. Every method except `current` requires the device to be current
in the calling thread. All work goes to streams that were created here, which don't synchronise with the default stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..errors import UserError
from ..machine.cuda_libraries import EXTRAS, MIN_DRIVER, install_command

Binding = Literal["cuda-python", "pycuda"]


class CudaError(UserError):
    """No device, no driver, no binding, or a CUDA call that failed."""


class OutOfMemory(CudaError):
    """Device memory ran out."""


@dataclass(frozen=True)
class Device:
    """A GPU as CUDA describes it."""

    index: int  # CUDA's
    name: str
    compute_capability: str  # such as "8.6"
    memory_bytes: int
    clock_mhz: float  # the highest clock of its multiprocessors


class Graphs(Protocol):
    """CUDA graphs of one device: work that is recorded once and launched as a whole."""

    def begin_capture(self, stream: Any) -> None:
        """Start recording: work put into the stream is recorded, not run. Other threads may go on calling CUDA."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """Stop recording and return the graph, ready to launch. Raises CudaError where the capture was invalidated."""
        ...

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue the recorded work on a stream."""
        ...

    def destroy_graph(self, graph: Any) -> None:
        """Free a graph. No launch of it may be in flight."""
        ...


class Cuda(Protocol):
    """One device through one binding. Methods raise CudaError where the CUDA call fails."""

    @property
    def binding(self) -> Binding:
        """The library that calls CUDA."""
        ...

    @property
    def device(self) -> Device:
        """The device that everything here belongs to."""
        ...

    @property
    def graphs(self) -> Graphs | None:
        """CUDA graphs; None where the binding doesn't support them."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """A context manager that makes the device current in the calling thread."""
        ...

    def free_bytes(self) -> int:
        """Device memory that nobody uses now, in bytes."""
        ...

    def address(self, handle: Any) -> int:
        """The number by which TensorRT knows device memory or a stream."""
        ...

    def alloc(self, size: int) -> Any:
        """Allocate `size` bytes of device memory. Raises OutOfMemory."""
        ...

    def free(self, memory: Any) -> None:
        """Free device memory. No queued work may use it."""
        ...

    def alloc_pinned(self, size: int) -> np.ndarray:
        """Allocate page-locked host memory, uint8 [size], which asynchronous copies require."""
        ...

    def free_pinned(self, array: np.ndarray) -> None:
        """Free an array of `alloc_pinned`. Neither the array nor a view of it may be touched afterwards."""
        ...

    def create_stream(self) -> Any:
        """Create a stream that doesn't synchronise with the default stream."""
        ...

    def destroy_stream(self, stream: Any) -> None:
        """Destroy a stream whose work has been waited for."""
        ...

    def synchronize_stream(self, stream: Any) -> None:
        """Block until all work in the stream has ended."""
        ...

    def create_event(self) -> Any:
        """Create an event that records times. Threads sleep while they wait for it: decoding needs the processor."""
        ...

    def destroy_event(self, event: Any) -> None:
        """Destroy an event that nothing waits for."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Put the event behind the work that the stream holds now."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """Hold back whatever is put into the stream from now on until the event has happened. Doesn't block."""
        ...

    def synchronize_event(self, event: Any) -> None:
        """Block until the event has happened."""
        ...

    def seconds_between(self, start: Any, end: Any) -> float:
        """Seconds between two recorded events. Both must have been waited for."""
        ...

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        """Start a copy of contiguous pinned memory to a device address. `source` stays in use until waited for."""
        ...

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        """Start a copy from a device address to contiguous pinned memory. `target` stays in use until waited for."""
        ...

    def follow(self, stream: Any, producer: int, event: Any) -> None:
        """Hold back what is put into the stream from now on until the work of somebody else's stream has ended.

        `producer` is that stream's handle; 1 and 2 are CUDA's default streams. `event` may be used for it.
        """
        ...

    def device_of(self, address: int) -> int:
        """CUDA's index of the device that memory of anybody lies on. Raises CudaError for ordinary host memory.

        Page-locked host memory, which a kernel can read too, belongs to a device.
        """
        ...

    def load_kernel(self, ptx: bytes, name: str) -> Any:
        """The function `name` of a PTX text, compiled for the device."""
        ...

    def run_kernel(
        self, kernel: Any, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[np.generic], stream: Any
    ) -> None:
        """Queue a kernel on a stream. The types of the arguments must be those of its parameters."""
        ...

    def unload_kernel(self, kernel: Any) -> None:
        """Free a kernel. No run of it may be in flight."""
        ...

    def close(self) -> None:
        """Release the device. Everything created here must have been freed before."""
        ...


def no_pinned_memory(size: int) -> CudaError:
    """The error for page-locked host memory that the system refuses."""
    mib = f"{size / 2**20:.1f} MiB"
    return CudaError(f"cannot allocate {mib} of pinned host memory; use a smaller batch or fewer slots")


def host_memory(address: int) -> CudaError:
    """The error for an array said to lie in a GPU's memory whose address CUDA doesn't know."""
    return CudaError(
        f"memory at {address:#x} lies on the host, expected an array in a GPU's memory; give it as NumPy's array"
    )


def check_index(index: int, count: int) -> None:
    """Raise CudaError unless the index is one of `count` devices."""
    if not 0 <= index < count:
        devices = f"devices 0 to {count - 1}" if count > 1 else "one device, number 0" if count else "no CUDA device"
        raise CudaError(f"CUDA device {index} does not exist; this machine has {devices}")


def old_driver(cuda: int, library: str, driver_cuda: str) -> CudaError:
    """The error for a driver (of CUDA `driver_cuda`) that is too old for `library`, which needs the major `cuda`."""
    least = MIN_DRIVER.get(cuda)
    older = int(driver_cuda.split(".")[0])
    instead = f", or take the libraries of CUDA {older}: {install_command(older)}" if older in EXTRAS else ""
    return CudaError(
        f"NVIDIA's driver is for CUDA {driver_cuda} and too old for {library}, which is for CUDA {cuda}: update the "
        f"driver{f' to {least} or newer' if least else ''}{instead}"
    )


def no_driver(reason: object) -> CudaError:
    """The error for CUDA that doesn't start."""
    return CudaError(
        f"CUDA finds no usable device ({reason}); install NVIDIA's driver, or run the .onnx file on the CPU"
    )
