"""CUDA through pycuda, which wraps the driver API, on the device's primary context: TensorRT uses the same context.

pycuda's objects free themselves when their last reference is dropped. That works only while their context is current.
A primary context is such an object too, and letting it go does harm: on a driver for CUDA 13, with pycuda 2026.1, it
stays current in the thread that let it go, and an explicit `detach` besides destroys it under TensorRT. So each
device's primary context is retained once and kept until the process ends.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from .contract import Binding, CudaError, Device, OutOfMemory, check_index, host_memory, no_driver, no_pinned_memory

# pycuda has no names for these.
_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL

_retaining = threading.Lock()
_primary_contexts: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()  # pycuda.driver → device → context


def import_library() -> Any:
    """`pycuda.driver`. Raises CudaError where pycuda is not installed."""
    try:
        import pycuda.driver
    except ImportError as error:
        raise CudaError(
            f"pycuda cannot be imported ({error}); it is built from source and needs the CUDA toolkit: pip install "
            "'atss-toolkit[pycuda]'; cuda-python serves as well: pip install 'cuda-python>=12.6'"
        ) from error
    return pycuda.driver


def driver_library() -> Any:
    """The driver's own library, for what pycuda doesn't wrap. pycuda has loaded it."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _primary_context(driver: Any, index: int) -> Any:
    """The primary context of a device, retained when first asked for. Raises pycuda's errors."""
    with _retaining:
        contexts = _primary_contexts.setdefault(driver, {})
        if index not in contexts:
            contexts[index] = driver.Device(index).retain_primary_context()
        return contexts[index]


def pci_bus_id(driver: Any, index: int) -> str:
    """See `runtime.cuda.pci_bus_id`. Raises CudaError."""
    try:
        driver.init()
        return str(driver.Device(index).pci_bus_id())
    except driver.Error as error:
        raise CudaError(f"CUDA device {index} has no PCI bus id ({error})") from error


class PyCuda:
    """One device through pycuda; see `Cuda`."""

    binding: Binding = "pycuda"
    graphs = None  # as of pycuda 2026.1

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self._index = index
        try:
            driver.init()
            count = driver.Device.count()
        except driver.Error as error:
            raise no_driver(error) from error
        check_index(index, count)
        found = driver.Device(index)
        major, minor = found.compute_capability()
        clock_khz = found.get_attribute(driver.device_attribute.CLOCK_RATE)
        self.device = Device(index, found.name(), f"{major}.{minor}", int(found.total_memory()), clock_khz / 1000)
        self._primary = self._call(_primary_context, driver, index)

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.MemoryError as error:
            raise OutOfMemory(f"CUDA device {self._index} is out of memory") from error
        except self._driver.Error as error:
            raise CudaError(f"CUDA failed: {error}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`; pushes the device's primary context."""
        self._call(self._primary.push)
        try:
            yield
        finally:
            self._call(self._driver.Context.pop)

    def free_bytes(self) -> int:
        """See `Cuda`."""
        return int(self._call(self._driver.mem_get_info)[0])

    def address(self, handle: Any) -> int:
        """See `Cuda`; memory converts to int, a stream has a handle."""
        return int(handle.handle if isinstance(handle, self._driver.Stream) else handle)

    def alloc(self, size: int) -> Any:
        """See `Cuda`."""
        return self._call(self._driver.mem_alloc, size)

    def free(self, memory: Any) -> None:
        """See `Cuda`."""
        self._call(memory.free)

    def alloc_pinned(self, size: int) -> np.ndarray:
        """See `Cuda`; portable, so that every context may copy from it."""
        flags = self._driver.host_alloc_flags.PORTABLE
        try:
            return self._call(self._driver.pagelocked_empty, size, np.uint8, "C", flags)
        except OutOfMemory as error:
            raise no_pinned_memory(size) from error

    def free_pinned(self, array: np.ndarray) -> None:
        """See `Cuda`; pycuda keeps the allocation as the base of its array."""
        self._call(array.base.free)  # type: ignore[union-attr]

    def create_stream(self) -> Any:
        """See `Cuda`."""
        return self._call(self._driver.Stream, _STREAM_NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:
        """Does nothing: pycuda destroys a stream with its last reference."""

    def synchronize_stream(self, stream: Any) -> None:
        """See `Cuda`."""
        self._call(stream.synchronize)

    def create_event(self) -> Any:
        """See `Cuda`."""
        return self._call(self._driver.Event, self._driver.event_flags.BLOCKING_SYNC)

    def destroy_event(self, event: Any) -> None:
        """Does nothing: pycuda destroys an event with its last reference."""

    def record(self, event: Any, stream: Any) -> None:
        """See `Cuda`."""
        self._call(event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See `Cuda`."""
        self._call(stream.wait_for_event, event)

    def synchronize_event(self, event: Any) -> None:
        """See `Cuda`."""
        self._call(event.synchronize)

    def seconds_between(self, start: Any, end: Any) -> float:
        """See `Cuda`; pycuda gives milliseconds."""
        return float(self._call(start.time_till, end)) / 1000

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        """See `Cuda`."""
        self._call(self._driver.memcpy_htod_async, target, source, stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        """See `Cuda`."""
        self._call(self._driver.memcpy_dtoh_async, target, source, stream)

    def follow(self, stream: Any, producer: int, event: Any) -> None:
        """See `Cuda`; pycuda knows no stream but its own, so that the host waits for all work of the device."""
        self._call(self._driver.Context.synchronize)

    def device_of(self, address: int) -> int:
        """See `Cuda`; by cuPointerGetAttribute, which pycuda doesn't wrap."""
        device = ctypes.c_int(-1)
        get_attribute = driver_library().cuPointerGetAttribute
        error = get_attribute(ctypes.byref(device), _DEVICE_ORDINAL, ctypes.c_uint64(address))
        if error or device.value < 0:
            raise host_memory(address)
        return device.value

    def load_kernel(self, ptx: bytes, name: str) -> Any:
        """See `Cuda`."""
        module = self._call(self._driver.module_from_buffer, ptx + b"\0")
        return self._call(module.get_function, name)

    def run_kernel(
        self, kernel: Any, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[np.generic], stream: Any
    ) -> None:
        """See `Cuda`."""

        def launch() -> None:
            kernel(*arguments, grid=(*grid, 1), block=(*block, 1), stream=stream)

        self._call(launch)

    def unload_kernel(self, kernel: Any) -> None:
        """Does nothing: pycuda unloads a kernel with its last reference."""

    def close(self) -> None:
        """Does nothing: the primary context belongs to the process, and TensorRT uses it too."""
