"""CUDA through cuda-python, which wraps the runtime API: every function returns (error, result …)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .contract import (
    Binding,
    CudaError,
    Device,
    OutOfMemory,
    check_index,
    host_memory,
    no_driver,
    no_pinned_memory,
    old_driver,
)

_BUS_ID_BYTES = 32  # "0000:01:00.0" and its end take 13


def import_library() -> Any:
    """`cuda.bindings.runtime`. Raises CudaError where cuda-python is not installed."""
    try:
        import cuda.bindings.runtime as cudart
    except ImportError as error:
        raise CudaError(
            f"cuda-python cannot be imported ({error}); install it, or pycuda in its place: "
            "pip install 'cuda-python>=12.6'"
        ) from error
    return cudart


def pci_bus_id(cudart: Any, index: int) -> str:
    """See `runtime.cuda.pci_bus_id`. Raises CudaError."""
    error, text = cudart.cudaDeviceGetPCIBusId(_BUS_ID_BYTES, index)
    if error != cudart.cudaError_t.cudaSuccess:
        raise CudaError(f"CUDA device {index} has no PCI bus id ({error.name})")
    return text.split(b"\0")[0].decode()


class _Kernel:
    """A loaded kernel, with memory for the arguments of its runs."""

    def __init__(self, driver: Any, module: Any, function: Any) -> None:
        self.driver, self.module, self.function = driver, module, function
        self._memory = threading.local()  # a run may be queued while another thread queues one

    def arguments(self, arguments: Sequence[np.generic]) -> np.ndarray:
        """The addresses of the arguments' values, uint64 [arguments], valid until the thread's next call.

        cuda-python also takes values with their ctypes types, but converts them anew in each call.
        """
        types = tuple(map(type, arguments))
        if getattr(self._memory, "types", None) != types:
            packed = np.dtype([(f"{index}", argument.dtype) for index, argument in enumerate(arguments)])
            values = np.zeros((), packed)
            offsets = [packed.fields[name][1] for name in packed.names or ()] if packed.fields else []
            self._memory.types, self._memory.values = types, values
            self._memory.addresses = np.array(offsets, np.uint64) + np.uint64(values.ctypes.data)
        self._memory.values[()] = tuple(arguments)
        addresses: np.ndarray = self._memory.addresses
        return addresses


class CudaPython:
    """One device through cuda-python; see `Cuda`."""

    binding: Binding = "cuda-python"

    def __init__(self, cudart: Any, index: int) -> None:
        self._cudart = cudart
        self._index = index
        error, count = cudart.cudaGetDeviceCount()
        if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
            raise _insufficient(cudart)
        if error != cudart.cudaError_t.cudaSuccess:
            raise no_driver(self._explain(error))
        check_index(index, count)
        properties = self._call(cudart.cudaGetDeviceProperties, index)
        clock_khz = self._call(cudart.cudaDeviceGetAttribute, cudart.cudaDeviceAttr.cudaDevAttrClockRate, index)
        self.device = Device(
            index,
            properties.name.decode(),
            f"{properties.major}.{properties.minor}",
            int(properties.totalGlobalMem),
            clock_khz / 1000,
        )

    def _explain(self, error: Any) -> str:
        _, text = self._cudart.cudaGetErrorString(error)
        return f"{text.decode()}, {error.name}"

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call a function and return its result without the error code. Raises CudaError, OutOfMemory."""
        error, *results = function(*arguments)
        if error == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfMemory(f"CUDA device {self._index} is out of memory")
        if error != self._cudart.cudaError_t.cudaSuccess:
            raise CudaError(f"{function.__name__} failed: {self._explain(error)}")
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`; restores the device that was current before."""
        before = self._call(self._cudart.cudaGetDevice)
        self._call(self._cudart.cudaSetDevice, self._index)
        try:
            yield
        finally:
            if before != self._index:
                self._call(self._cudart.cudaSetDevice, before)

    def free_bytes(self) -> int:
        """See `Cuda`; by cudaMemGetInfo."""
        error, free, _total = self._cudart.cudaMemGetInfo()
        self._call(lambda: (error,))
        return int(free)

    def address(self, handle: Any) -> int:
        """See `Cuda`; handles of cuda-python convert to int."""
        return int(handle)

    def alloc(self, size: int) -> Any:
        """See `Cuda`; by cudaMalloc."""
        return self._call(self._cudart.cudaMalloc, size)

    def free(self, memory: Any) -> None:
        """See `Cuda`; by cudaFree."""
        self._call(self._cudart.cudaFree, memory)

    def alloc_pinned(self, size: int) -> np.ndarray:
        """See `Cuda`; portable, so that every context may copy from it."""
        try:
            pointer = int(self._call(self._cudart.cudaHostAlloc, size, self._cudart.cudaHostAllocPortable))
        except OutOfMemory as error:
            raise no_pinned_memory(size) from error
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def free_pinned(self, array: np.ndarray) -> None:
        """See `Cuda`; by cudaFreeHost."""
        self._call(self._cudart.cudaFreeHost, array.ctypes.data)

    def create_stream(self) -> Any:
        """See `Cuda`; with cudaStreamNonBlocking."""
        return self._call(self._cudart.cudaStreamCreateWithFlags, self._cudart.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """See `Cuda`."""
        self._call(self._cudart.cudaStreamDestroy, stream)

    def synchronize_stream(self, stream: Any) -> None:
        """See `Cuda`."""
        self._call(self._cudart.cudaStreamSynchronize, stream)

    def create_event(self) -> Any:
        """See `Cuda`; with cudaEventBlockingSync."""
        return self._call(self._cudart.cudaEventCreateWithFlags, self._cudart.cudaEventBlockingSync)

    def destroy_event(self, event: Any) -> None:
        """See `Cuda`."""
        self._call(self._cudart.cudaEventDestroy, event)

    def record(self, event: Any, stream: Any) -> None:
        """See `Cuda`."""
        self._call(self._cudart.cudaEventRecord, event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See `Cuda`."""
        self._call(self._cudart.cudaStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: Any) -> None:
        """See `Cuda`."""
        self._call(self._cudart.cudaEventSynchronize, event)

    def seconds_between(self, start: Any, end: Any) -> float:
        """See `Cuda`; CUDA gives milliseconds."""
        return float(self._call(self._cudart.cudaEventElapsedTime, start, end)) / 1000

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        """See `Cuda`; by cudaMemcpyAsync."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cudart.cudaMemcpyAsync, target, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        """See `Cuda`; by cudaMemcpyAsync."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cudart.cudaMemcpyAsync, target.ctypes.data, source, target.nbytes, kind, stream)

    def follow(self, stream: Any, producer: int, event: Any) -> None:
        """See `Cuda`; by an event on the producer's stream."""
        self.record(event, self._cudart.cudaStream_t(producer))
        self.wait(stream, event)

    def device_of(self, address: int) -> int:
        """See `Cuda`; by cudaPointerGetAttributes."""
        attributes = self._call(self._cudart.cudaPointerGetAttributes, address)
        if attributes.type == self._cudart.cudaMemoryType.cudaMemoryTypeUnregistered:
            raise host_memory(address)
        return int(attributes.device)

    def load_kernel(self, ptx: bytes, name: str) -> Any:
        """See `Cuda`; the driver API's module and function, in the primary context."""
        import cuda.bindings.driver as driver

        module = self._call_driver(driver.cuModuleLoadData, ptx + b"\0")
        return _Kernel(driver, module, self._call_driver(driver.cuModuleGetFunction, module, name.encode()))

    def run_kernel(
        self, kernel: Any, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[np.generic], stream: Any
    ) -> None:
        """See `Cuda`; by cuLaunchKernel, without dynamic shared memory."""
        driver, given = kernel.driver, kernel.arguments(arguments)
        on = driver.CUstream(int(stream))
        self._call_driver(driver.cuLaunchKernel, kernel.function, *grid, 1, *block, 1, 0, on, given, 0)

    def unload_kernel(self, kernel: Any) -> None:
        """See `Cuda`."""
        self._call_driver(kernel.driver.cuModuleUnload, kernel.module)

    def _call_driver(self, function: Any, *arguments: Any) -> Any:
        """Call a function of the driver API and return its result without the error code. Raises CudaError."""
        error, *results = function(*arguments)
        if error != 0:
            raise CudaError(f"{function.__name__} failed: {error.name}")
        return results[0] if results else None

    @property
    def graphs(self) -> CudaPython:
        """See `Cuda`; this object has the methods of `Graphs` too."""
        return self

    def begin_capture(self, stream: Any) -> None:
        """See `Graphs`."""
        # Thread-local: another slot's thread may allocate or copy meanwhile, which a global capture would forbid.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cudart.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """See `Graphs`."""
        recorded = self._call(self._cudart.cudaStreamEndCapture, stream)
        try:
            return self._call(self._cudart.cudaGraphInstantiate, recorded, 0)
        finally:
            self._call(self._cudart.cudaGraphDestroy, recorded)

    def launch(self, graph: Any, stream: Any) -> None:
        """See `Graphs`."""
        self._call(self._cudart.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """See `Graphs`."""
        self._call(self._cudart.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        """Does nothing: the primary context belongs to the process, and TensorRT uses it too."""


def _insufficient(cudart: Any) -> CudaError:
    """The error for cudaErrorInsufficientDriver, which stands for an old driver and for none; none has version 0."""
    (_, driver), (_, ours) = cudart.cudaDriverGetVersion(), cudart.cudaRuntimeGetVersion()  # such as 12040 for 12.4
    if not driver:
        return no_driver("no driver is loaded")
    return old_driver(ours // 1000, "cuda-python", f"{driver // 1000}.{driver % 1000 // 10}")
