"""`cuda.bindings.runtime` over the driver: its names, its own enumerations and handle classes, (error, result …)."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import cuda.bindings.runtime as real

from . import streams
from .driver import Driver
from .parts import Failure, Graph

OK = real.cudaError_t.cudaSuccess
OUT_OF_MEMORY = real.cudaError_t.cudaErrorMemoryAllocation


def make_cudart(driver: Driver) -> types.ModuleType:
    """The module. Each of its names must exist in the installed cuda-python."""
    module = types.ModuleType("cuda.bindings.runtime")
    for name, value in {
        **_constants(),
        **_devices(driver),
        **_memory(driver),
        **_work(driver),
        **_graphs(driver),
    }.items():
        if not hasattr(real, name):
            raise AttributeError(f"cuda-python has no {name}")
        setattr(module, name, _reporting(value) if isinstance(value, types.FunctionType) else value)
    return module


def _reporting(function: Callable[..., tuple]) -> Callable[..., tuple]:
    """The function, with failures as the code that they have in CUDA."""

    @functools.wraps(function)
    def call(*arguments: Any) -> tuple:
        try:
            return function(*arguments)
        except Failure:
            return real.cudaError_t.cudaErrorUnknown, None

    return call


def _constants() -> dict[str, Any]:
    names = (
        "cudaError_t cudaDeviceAttr cudaMemcpyKind cudaStreamCaptureMode cudaHostAllocPortable cudaStreamNonBlocking "
        "cudaEventBlockingSync cudaGetErrorString cudaStream_t cudaMemoryType"
    )
    return {name: getattr(real, name) for name in names.split()}


def _devices(driver: Driver) -> dict[str, Any]:
    def cudaDriverGetVersion() -> tuple:
        return OK, driver.cuda_version

    def cudaRuntimeGetVersion() -> tuple:
        return OK, 13000

    def cudaGetDeviceCount() -> tuple:
        if driver.cuda_version < 13000:
            return real.cudaError_t.cudaErrorInsufficientDriver, None
        if driver.devices == 0:
            return real.cudaError_t.cudaErrorNoDevice, None
        return OK, driver.devices

    def cudaGetDevice() -> tuple:
        return OK, driver.device()

    def cudaSetDevice(device: int) -> tuple:
        if not 0 <= device < driver.devices:
            return (real.cudaError_t.cudaErrorInvalidDevice,)
        driver.current.device = device
        return (OK,)

    def cudaGetDeviceProperties(device: int) -> tuple:
        major, minor = driver.compute_capability
        return OK, types.SimpleNamespace(name=b"Stand-in", major=major, minor=minor, totalGlobalMem=driver.memory)

    def cudaDeviceGetAttribute(attribute: Any, device: int) -> tuple:
        assert attribute == real.cudaDeviceAttr.cudaDevAttrClockRate
        return OK, 1_500_000

    def cudaDeviceGetPCIBusId(length: int, device: int) -> tuple:
        if not 0 <= device < driver.devices:
            return real.cudaError_t.cudaErrorInvalidDevice, None
        return OK, driver.bus_id(device).encode().ljust(length, b"\0")

    def cudaMemGetInfo() -> tuple:
        return OK, driver.memory - driver.used("device"), driver.memory

    return locals_of(locals())


def _memory(driver: Driver) -> dict[str, Any]:
    def cudaMalloc(size: int) -> tuple:
        with driver.call("cudaMalloc", forbidden_in_capture=True):
            allocation = driver.allocate(size, "device")
        return (OK, allocation.address) if allocation else (OUT_OF_MEMORY, None)

    def cudaFree(address: int) -> tuple:
        with driver.call("cudaFree", forbidden_in_capture=True):
            driver.free(int(address), "device")
        return (OK,)

    def cudaHostAlloc(size: int, flags: int) -> tuple:
        with driver.call("cudaHostAlloc", forbidden_in_capture=True):
            allocation = driver.allocate(size, "pinned")
        return (OK, allocation.address) if allocation else (OUT_OF_MEMORY, None)

    def cudaFreeHost(address: int) -> tuple:
        with driver.call("cudaFreeHost", forbidden_in_capture=True):
            driver.free(int(address), "pinned")
        return (OK,)

    def cudaPointerGetAttributes(address: int) -> tuple:
        found, kinds = driver.holder(address), real.cudaMemoryType
        if found is None:
            return OK, types.SimpleNamespace(device=-2, type=kinds.cudaMemoryTypeUnregistered)
        kind = kinds.cudaMemoryTypeDevice if found.kind == "device" else kinds.cudaMemoryTypeHost
        return OK, types.SimpleNamespace(device=found.device, type=kind)

    def cudaMemcpyAsync(target: int, source: int, count: int, kind: Any, stream: Any) -> tuple:
        with driver.call("cudaMemcpyAsync"):
            on = driver.stream(int(stream))
            if kind == real.cudaMemcpyKind.cudaMemcpyHostToDevice:
                streams.copy_to_device(driver, target, source, count, on)
            elif kind == real.cudaMemcpyKind.cudaMemcpyDeviceToHost:
                streams.copy_to_host(driver, target, source, count, on)
            else:
                raise driver.violation(f"a copy of kind {kind}")
        return (OK,)

    return locals_of(locals())


def _work(driver: Driver) -> dict[str, Any]:
    def cudaStreamCreateWithFlags(flags: int) -> tuple:
        with driver.call("cudaStreamCreateWithFlags"):
            if flags != real.cudaStreamNonBlocking:
                raise driver.violation("a stream that synchronizes with the default stream")
            return OK, real.cudaStream_t(driver.create_stream().number)

    def cudaStreamDestroy(stream: Any) -> tuple:
        with driver.call("cudaStreamDestroy"):
            driver.destroy(driver.stream(int(stream)))
        return (OK,)

    def cudaStreamSynchronize(stream: Any) -> tuple:
        with driver.call("cudaStreamSynchronize", forbidden_in_capture=True):
            streams.synchronize_stream(driver, driver.stream(int(stream)))
        return (OK,)

    def cudaStreamWaitEvent(stream: Any, event: Any, flags: int) -> tuple:
        with driver.call("cudaStreamWaitEvent"):
            streams.wait(driver, driver.stream(int(stream)), driver.event(int(event)))
        return (OK,)

    def cudaEventCreateWithFlags(flags: int) -> tuple:
        with driver.call("cudaEventCreateWithFlags"):
            return OK, real.cudaEvent_t(driver.create_event(not flags & real.cudaEventDisableTiming).number)

    def cudaEventDestroy(event: Any) -> tuple:
        with driver.call("cudaEventDestroy"):
            driver.destroy(driver.event(int(event)))
        return (OK,)

    def cudaEventRecord(event: Any, stream: Any) -> tuple:
        with driver.call("cudaEventRecord"):
            streams.record(driver, driver.event(int(event)), driver.recorded_on(int(stream)))
        return (OK,)

    def cudaEventSynchronize(event: Any) -> tuple:
        with driver.call("cudaEventSynchronize", forbidden_in_capture=True):
            streams.synchronize_event(driver, driver.event(int(event)))
        return (OK,)

    def cudaEventElapsedTime(start: Any, end: Any) -> tuple:
        with driver.call("cudaEventElapsedTime"):
            return OK, streams.milliseconds(driver, driver.event(int(start)), driver.event(int(end)))

    return locals_of(locals())


def _graphs(driver: Driver) -> dict[str, Any]:
    def graph(number: Any) -> Graph:
        found = driver.handles.get(int(number))
        if not isinstance(found, Graph):
            raise driver.violation("a graph that doesn't exist, or not any more")
        return found

    def cudaStreamBeginCapture(stream: Any, mode: Any) -> tuple:
        with driver.call("cudaStreamBeginCapture"):
            is_global = mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
            streams.begin_capture(driver, driver.stream(int(stream)), is_global)
        return (OK,)

    def cudaStreamEndCapture(stream: Any) -> tuple:
        with driver.call("cudaStreamEndCapture"):
            ended = streams.end_capture(driver, driver.stream(int(stream)))
            if ended is None:
                return real.cudaError_t.cudaErrorStreamCaptureInvalidated, None
            driver.handles[ended.number] = ended
            return OK, real.cudaGraph_t(ended.number)

    def cudaGraphInstantiate(recorded: Any, flags: int) -> tuple:
        with driver.call("cudaGraphInstantiate"):
            of = graph(recorded)
            made = Graph(driver.next_number(), of.thread, of.is_global, of.operations)
            driver.handles[made.number] = made
            return OK, real.cudaGraphExec_t(made.number)

    def cudaGraphLaunch(executable: Any, stream: Any) -> tuple:
        with driver.call("cudaGraphLaunch"):
            streams.launch(driver, graph(executable), driver.stream(int(stream)))
        return (OK,)

    def cudaGraphDestroy(recorded: Any) -> tuple:
        with driver.call("cudaGraphDestroy"):
            driver.destroy(graph(recorded))
        return (OK,)

    def cudaGraphExecDestroy(executable: Any) -> tuple:
        with driver.call("cudaGraphExecDestroy"):
            driver.destroy(graph(executable))
        return (OK,)

    return locals_of(locals())


def locals_of(names: dict[str, Any]) -> dict[str, Any]:
    """The functions of CUDA's names among a function's local variables."""
    return {name: value for name, value in names.items() if name.startswith("cuda")}
