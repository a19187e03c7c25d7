"""CUDA, as much of it as a backend needs: the one seam over cuda-python and pycuda.

Handles (memory, streams, events, graphs) are whatever the binding makes; they go back into the functions here, and
`address` gives TensorRT the number. Every function but `current` wants the device current in the calling thread. All
work goes to streams that were made here, which don't synchronize with the default stream.
"""

from __future__ import annotations

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
    """An allocation that didn't fit on the device."""


@dataclass(frozen=True)
class Device:
    index: int
    name: str
    compute_capability: str  # such as "8.6"
    memory_bytes: int
    clock_mhz: float  # the highest clock of its multiprocessors


class Graphs(Protocol):
    """What CUDA graphs need; of one device, as `Cuda`."""

    def begin_capture(self, stream: Any) -> None:
        """From now on work put into the stream is recorded, not run; other threads may go on calling CUDA."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """The graph of what was recorded, ready to launch."""
        ...

    def launch(self, graph: Any, stream: Any) -> None: ...

    def destroy_graph(self, graph: Any) -> None: ...


class Cuda(Protocol):
    """One device, through one binding."""

    @property
    def binding(self) -> Binding: ...

    @property
    def device(self) -> Device: ...

    @property
    def graphs(self) -> Graphs | None:
        """None where the binding knows no CUDA graphs."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Within it, the device is the calling thread's current one."""
        ...

    def free_bytes(self) -> int: ...

    def address(self, handle: Any) -> int:
        """The number that TensorRT takes for device memory or a stream."""
        ...

    def alloc(self, size: int) -> Any:
        """Device memory of `size` bytes. Raises OutOfMemory."""
        ...

    def free(self, memory: Any) -> None: ...

    def alloc_pinned(self, size: int) -> np.ndarray:
        """Page-locked host memory as uint8 [size]; asynchronous copies need it."""
        ...

    def free_pinned(self, array: np.ndarray) -> None:
        """Free what alloc_pinned returned; neither it nor a view of it may be touched again."""
        ...

    def create_stream(self) -> Any: ...

    def destroy_stream(self, stream: Any) -> None: ...

    def synchronize_stream(self, stream: Any) -> None: ...

    def create_event(self) -> Any:
        """An event that takes times, and that a thread waits for asleep: the processor is needed for decoding."""
        ...

    def destroy_event(self, event: Any) -> None: ...

    def record(self, event: Any, stream: Any) -> None: ...

    def wait(self, stream: Any, event: Any) -> None:
        """What is put into the stream from now on starts after the event."""
        ...

    def synchronize_event(self, event: Any) -> None: ...

    def seconds_between(self, start: Any, end: Any) -> float:
        """Between two recorded events; both must have been waited for."""
        ...

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        """Start copying contiguous pinned memory to a device address; the source is in use until waited for."""
        ...

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        """Start filling contiguous pinned memory from a device address; the target is in use until waited for."""
        ...

    def close(self) -> None: ...


def open_cuda(device: int = 0, binding: Binding | None = None) -> Cuda:
    """The device of that index, through `binding`, or else through what is installed: cuda-python, then pycuda.

    Raises CudaError where there is no binding, no driver or no such device.
    """
    from . import cuda_python, pycuda_driver

    if binding == "cuda-python":
        return cuda_python.CudaPython(cuda_python.import_library(), device)
    if binding == "pycuda":
        return pycuda_driver.PyCuda(pycuda_driver.import_library(), device)
    if binding is not None:
        raise CudaError(f"binding {binding!r}, expected 'cuda-python' or 'pycuda'")
    try:
        cudart = cuda_python.import_library()
    except CudaError as missing:
        try:
            driver = pycuda_driver.import_library()
        except CudaError:
            raise missing from None
        return pycuda_driver.PyCuda(driver, device)
    return cuda_python.CudaPython(cudart, device)


def pci_bus_id(device: int) -> str | None:
    """Where the device of that index lies on the PCI bus, such as "0000:01:00.0": its name in NVIDIA's other tools.

    None where there is no binding, no driver or no such device. No context is made, which would take device memory.
    """
    from . import cuda_python, pycuda_driver

    for binding in (cuda_python, pycuda_driver):
        try:
            return binding.pci_bus_id(binding.import_library(), device)
        except CudaError:
            continue
    return None


def no_pinned_memory(size: int) -> CudaError:
    """The error where the host can't lock that many bytes."""
    return CudaError(f"{size / 2**20:.1f} MiB of pinned host memory cannot be had; use a smaller batch or fewer slots")


def check_index(index: int, count: int) -> None:
    """Raise CudaError unless there is a device of that index."""
    if not 0 <= index < count:
        devices = f"devices 0 to {count - 1}" if count > 1 else "one device, number 0" if count else "no CUDA device"
        raise CudaError(f"CUDA device {index} does not exist; this machine has {devices}")


def old_driver(cuda: int, library: str, driver_cuda: str) -> CudaError:
    """The error where the driver is for an older CUDA than `library`, which is for the major `cuda`."""
    least = MIN_DRIVER.get(cuda)
    older = int(driver_cuda.split(".")[0])
    instead = f", or take the libraries of CUDA {older}: {install_command(older)}" if older in EXTRAS else ""
    return CudaError(
        f"NVIDIA's driver is for CUDA {driver_cuda} and too old for {library}, which is for CUDA {cuda}: update the "
        f"driver{f' to {least} or newer' if least else ''}{instead}"
    )


def no_driver(reason: object) -> CudaError:
    """The error where CUDA itself doesn't start."""
    return CudaError(
        f"CUDA finds no usable device ({reason}); install NVIDIA's driver, or run the .onnx file on the CPU"
    )
