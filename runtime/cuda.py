"""CUDA, as much of it as a backend needs: the one seam over cuda-python and pycuda.

Handles (memory, streams, events, graphs) are whatever the binding makes; they go back into the functions here, and
`address` gives TensorRT the number. Every function wants its device current in the calling thread: `with cuda.current()`.
All work goes to streams that were made here, which don't synchronize with the default stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .errors import UserError

Binding = Literal["cuda-python", "pycuda"]


class CudaError(UserError):
    """No device, no driver, no binding, or a CUDA call that failed."""


class OutOfMemory(CudaError):
    """An allocation on the device, or of pinned host memory, that didn't fit."""


@dataclass(frozen=True)
class Device:
    index: int
    name: str
    compute_capability: str  # such as "8.6"
    memory_bytes: int
    clock_mhz: float  # the highest clock of its multiprocessors


class Cuda(Protocol):
    """One device, through one binding."""

    @property
    def binding(self) -> Binding: ...

    @property
    def device(self) -> Device: ...

    @property
    def captures_graphs(self) -> bool:
        """Whether the binding knows CUDA graphs; where not, `begin_capture` and what belongs to it must not be called."""
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
        """Page-locked host memory as uint8 [size]; asynchronous copies need it. Raises OutOfMemory."""
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

    def begin_capture(self, stream: Any) -> None:
        """From now on work put into the stream is recorded, not run; other threads may go on calling CUDA."""
        ...

    def end_capture(self, stream: Any) -> Any:
        """The graph of what was recorded, ready to launch."""
        ...

    def launch(self, graph: Any, stream: Any) -> None: ...

    def destroy_graph(self, graph: Any) -> None: ...

    def close(self) -> None: ...


def open_cuda(device: int = 0, binding: Binding | None = None) -> Cuda:
    """The device of that index, through `binding`, or else through what is installed: cuda-python, then pycuda.

    Raises CudaError where there is no binding, no driver or no such device.
    """
    if binding == "cuda-python":
        return CudaPython(_import_cuda_python(), device)
    if binding == "pycuda":
        return PyCuda(_import_pycuda(), device)
    if binding is not None:
        raise CudaError(f"binding {binding!r}, expected 'cuda-python' or 'pycuda'")
    try:
        cudart = _import_cuda_python()
    except CudaError as missing:
        try:
            driver = _import_pycuda()
        except CudaError:
            raise missing from None
        return PyCuda(driver, device)
    return CudaPython(cudart, device)


def _import_cuda_python() -> Any:
    try:
        import cuda.bindings.runtime as cudart
    except ImportError as error:
        raise CudaError(
            f"cuda-python cannot be imported ({error}); install it: pip install 'cuda-python>=12.6', or pycuda in its place"
        ) from error
    return cudart


def _import_pycuda() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:
        raise CudaError(
            f"pycuda cannot be imported ({error}); it is built from source and needs the CUDA toolkit: pip install "
            "'atss-toolkit[pycuda]'; cuda-python serves as well: pip install 'cuda-python>=12.6'"
        ) from error
    return pycuda.driver


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        devices = f"devices 0 to {count - 1}" if count > 1 else "one device, number 0" if count else "no CUDA device"
        raise CudaError(f"CUDA device {index} does not exist; this machine has {devices}")


def _no_driver(reason: object) -> CudaError:
    return CudaError(f"CUDA finds no usable device ({reason}); install NVIDIA's driver, or run the .onnx file on the CPU")


class CudaPython:
    """cuda-python: the CUDA runtime. Its functions return (error, result …)."""

    binding: Binding = "cuda-python"
    captures_graphs = True

    def __init__(self, cudart: Any, index: int) -> None:
        self._cudart = cudart
        error, count = cudart.cudaGetDeviceCount()
        if error != cudart.cudaError_t.cudaSuccess:
            raise _no_driver(self._explain(error))
        _check_index(index, count)
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
        """What a function returns behind its error code. Raises CudaError for any code but success."""
        error, *results = function(*arguments)
        if error == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfMemory(f"CUDA device {self.device.index} ({self.device.name}) is out of memory")
        if error != self._cudart.cudaError_t.cudaSuccess:
            raise CudaError(f"{function.__name__} failed: {self._explain(error)}")
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        before = self._call(self._cudart.cudaGetDevice)
        self._call(self._cudart.cudaSetDevice, self.device.index)
        try:
            yield
        finally:
            if before != self.device.index:
                self._call(self._cudart.cudaSetDevice, before)

    def free_bytes(self) -> int:
        error, free, _total = self._cudart.cudaMemGetInfo()
        self._call(lambda: (error,))
        return int(free)

    def address(self, handle: Any) -> int:
        return int(handle)

    def alloc(self, size: int) -> Any:
        return self._call(self._cudart.cudaMalloc, size)

    def free(self, memory: Any) -> None:
        self._call(self._cudart.cudaFree, memory)

    def alloc_pinned(self, size: int) -> np.ndarray:
        pointer = int(self._call(self._cudart.cudaHostAlloc, size, self._cudart.cudaHostAllocPortable))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def free_pinned(self, array: np.ndarray) -> None:
        self._call(self._cudart.cudaFreeHost, array.ctypes.data)

    def create_stream(self) -> Any:
        return self._call(self._cudart.cudaStreamCreateWithFlags, self._cudart.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        self._call(self._cudart.cudaStreamDestroy, stream)

    def synchronize_stream(self, stream: Any) -> None:
        self._call(self._cudart.cudaStreamSynchronize, stream)

    def create_event(self) -> Any:
        return self._call(self._cudart.cudaEventCreateWithFlags, self._cudart.cudaEventBlockingSync)

    def destroy_event(self, event: Any) -> None:
        self._call(self._cudart.cudaEventDestroy, event)

    def record(self, event: Any, stream: Any) -> None:
        self._call(self._cudart.cudaEventRecord, event, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._call(self._cudart.cudaStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: Any) -> None:
        self._call(self._cudart.cudaEventSynchronize, event)

    def seconds_between(self, start: Any, end: Any) -> float:
        return float(self._call(self._cudart.cudaEventElapsedTime, start, end)) / 1000

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cudart.cudaMemcpyAsync, target, source.ctypes.data, source.nbytes, kind, stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cudart.cudaMemcpyAsync, target.ctypes.data, source, target.nbytes, kind, stream)

    def begin_capture(self, stream: Any) -> None:
        # Thread-local: another slot's thread may allocate or copy meanwhile, which a global capture would forbid it.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cudart.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: Any) -> Any:
        recorded = self._call(self._cudart.cudaStreamEndCapture, stream)
        try:
            return self._call(self._cudart.cudaGraphInstantiate, recorded, 0)
        finally:
            self._call(self._cudart.cudaGraphDestroy, recorded)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call(self._cudart.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call(self._cudart.cudaGraphExecDestroy, graph)

    def close(self) -> None:
        """Nothing: the primary context belongs to the process, TensorRT uses it too."""


_STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


class PyCuda:
    """pycuda: the driver's interface, on the primary context, which is the one that TensorRT uses.

    Its objects free themselves when the last reference goes, which they can only while their context is current.
    """

    binding: Binding = "pycuda"
    captures_graphs = False  # as of pycuda 2026.1

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        try:
            driver.init()
            count = driver.Device.count()
        except driver.Error as error:
            raise _no_driver(error) from error
        _check_index(index, count)
        found = driver.Device(index)
        major, minor = found.compute_capability()
        clock_khz = found.get_attribute(driver.device_attribute.CLOCK_RATE)
        self.device = Device(index, found.name(), f"{major}.{minor}", int(found.total_memory()), clock_khz / 1000)
        self._primary = found.retain_primary_context()

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.MemoryError as error:
            raise OutOfMemory(f"CUDA device {self.device.index} ({self.device.name}) is out of memory") from error
        except self._driver.Error as error:
            raise CudaError(f"CUDA failed: {error}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call(self._primary.push)
        try:
            yield
        finally:
            self._call(self._driver.Context.pop)

    def free_bytes(self) -> int:
        return int(self._call(self._driver.mem_get_info)[0])

    def address(self, handle: Any) -> int:
        return int(handle.handle if isinstance(handle, self._driver.Stream) else handle)

    def alloc(self, size: int) -> Any:
        return self._call(self._driver.mem_alloc, size)

    def free(self, memory: Any) -> None:
        self._call(memory.free)

    def alloc_pinned(self, size: int) -> np.ndarray:
        flags = self._driver.host_alloc_flags.PORTABLE
        return self._call(self._driver.pagelocked_empty, size, np.uint8, "C", flags)

    def free_pinned(self, array: np.ndarray) -> None:
        self._call(array.base.free)  # type: ignore[union-attr]

    def create_stream(self) -> Any:
        return self._call(self._driver.Stream, _STREAM_NON_BLOCKING)

    def destroy_stream(self, stream: Any) -> None:
        """Nothing: the stream goes with its last reference."""

    def synchronize_stream(self, stream: Any) -> None:
        self._call(stream.synchronize)

    def create_event(self) -> Any:
        return self._call(self._driver.Event, self._driver.event_flags.BLOCKING_SYNC)

    def destroy_event(self, event: Any) -> None:
        """Nothing: the event goes with its last reference."""

    def record(self, event: Any, stream: Any) -> None:
        self._call(event.record, stream)

    def wait(self, stream: Any, event: Any) -> None:
        self._call(stream.wait_for_event, event)

    def synchronize_event(self, event: Any) -> None:
        self._call(event.synchronize)

    def seconds_between(self, start: Any, end: Any) -> float:
        return float(self._call(start.time_till, end)) / 1000

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        self._call(self._driver.memcpy_htod_async, target, source, stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        self._call(self._driver.memcpy_dtoh_async, target, source, stream)

    def begin_capture(self, stream: Any) -> None:
        raise NotImplementedError("pycuda does not capture graphs")

    def end_capture(self, stream: Any) -> Any:
        raise NotImplementedError("pycuda does not capture graphs")

    def launch(self, graph: Any, stream: Any) -> None:
        raise NotImplementedError("pycuda does not capture graphs")

    def destroy_graph(self, graph: Any) -> None:
        raise NotImplementedError("pycuda does not capture graphs")

    def close(self) -> None:
        self._primary = None
