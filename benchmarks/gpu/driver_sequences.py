"""The sequences whose verdicts the stand-in and the real driver give: see `driver_verdicts`."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from benchmarks.gpu.driver_verdicts import SIZE, Api, Refused, Sequence, host, in_thread, pause

SEQUENCES: dict[str, Sequence] = {}


def sequence(function: Sequence) -> Sequence:
    """Register a sequence under its docstring."""
    SEQUENCES[(function.__doc__ or "").rstrip(".")] = function
    return function


@sequence
def _copy_back(api: Api) -> Any:
    """A copy there and back."""
    memory, sent, got, stream = api.cudaMalloc(SIZE), api.pinned(), api.pinned(), api.stream()
    host(sent, SIZE)[:] = np.arange(SIZE) % 251
    api.up(memory, sent, SIZE, stream)
    api.down(got, memory, SIZE, stream)
    api.cudaStreamSynchronize(stream)
    return int(host(got, SIZE).astype(np.int64).sum())


@sequence
def _over_streams(api: Api) -> Any:
    """A stream that waits for an event of another stream."""
    memory, sent, got = api.cudaMalloc(SIZE), api.pinned(), api.pinned()
    first, second, event = api.stream(), api.stream(), api.event()
    host(sent, SIZE)[:] = 7
    api.up(memory, sent, SIZE, first)
    api.cudaEventRecord(event, first)
    api.cudaStreamWaitEvent(second, event, 0)
    api.down(got, memory, SIZE, second)
    api.cudaStreamSynchronize(second)
    return int(host(got, SIZE).astype(np.int64).sum())


@sequence
def _free_twice(api: Api) -> Any:
    """Device memory freed twice."""
    memory = api.cudaMalloc(SIZE)
    api.cudaFree(memory)
    api.cudaFree(memory)


@sequence
def _free_unknown(api: Api) -> Any:
    """Device memory freed by an address in its middle."""
    api.cudaFree(int(api.cudaMalloc(SIZE)) + 256)


@sequence
def _free_pinned_twice(api: Api) -> Any:
    """Pinned memory freed twice."""
    memory = api.pinned()
    api.cudaFreeHost(memory)
    api.cudaFreeHost(memory)


@sequence
def _free_wrong_kind(api: Api) -> Any:
    """Pinned memory freed as device memory."""
    api.cudaFree(api.pinned())


@sequence
def _free_wrong_kind_host(api: Api) -> Any:
    """Device memory freed as pinned memory."""
    api.cudaFreeHost(api.cudaMalloc(SIZE))


@sequence
def _nothing(api: Api) -> Any:
    """An allocation of no bytes."""
    api.cudaMalloc(0)


@sequence
def _too_much(api: Api) -> Any:
    """An allocation larger than the device."""
    api.cudaMalloc(1 << 50)


@sequence
def _after_failure(api: Api) -> Any:
    """An allocation after one that was too large."""
    try:
        api.cudaMalloc(1 << 50)
    except Refused:
        api.cudaFree(api.cudaMalloc(SIZE))


@sequence
def _bad_device(api: Api) -> Any:
    """A device that doesn't exist made current."""
    api.cudaSetDevice(99)


@sequence
def _bus_id(api: Api) -> Any:
    """The PCI bus id of a device that doesn't exist."""
    api.cudaDeviceGetPCIBusId(32, 99)


@sequence
def _bad_target(api: Api) -> Any:
    """A copy to device memory that was never allocated."""
    stream = api.stream()
    api.up(0x1234567000, api.pinned(), SIZE, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _out_of_range(api: Api) -> Any:
    """A copy of more bytes than the device memory has."""
    stream, size = api.stream(), 64 << 20
    memory, pinned = api.cudaMalloc(SIZE), api.pinned(size)
    api.up(memory, pinned, size, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _freed_target(api: Api) -> Any:
    """A copy to device memory that was freed."""
    stream, memory, pinned = api.stream(), api.cudaMalloc(SIZE), api.pinned()
    api.cudaFree(memory)
    api.up(memory, pinned, SIZE, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _wrong_direction(api: Api) -> Any:
    """A copy to the device whose target is pinned memory."""
    stream = api.stream()
    api.up(api.pinned(), api.pinned(), SIZE, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _pageable(api: Api) -> Any:
    """An asynchronous copy from memory that is not pinned."""
    stream, array = api.stream(), np.zeros(SIZE, np.uint8)
    api.up(api.cudaMalloc(SIZE), array.ctypes.data, SIZE, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _attributes(api: Api) -> Any:
    """The device of memory, asked in its middle."""
    return int(api.cudaPointerGetAttributes(int(api.cudaMalloc(SIZE)) + 100).device)


@sequence
def _attributes_of_host(api: Api) -> Any:
    """The device of memory that CUDA doesn't know."""
    array = np.zeros(SIZE, np.uint8)
    return int(api.cudaPointerGetAttributes(array.ctypes.data).device)


@sequence
def _stream_twice(api: Api) -> Any:
    """A stream destroyed twice."""
    stream = api.stream()
    api.cudaStreamDestroy(stream)
    api.cudaStreamDestroy(stream)


@sequence
def _dead_stream(api: Api) -> Any:
    """A copy on a destroyed stream."""
    stream, memory, pinned = api.stream(), api.cudaMalloc(SIZE), api.pinned()
    api.cudaStreamDestroy(stream)
    api.up(memory, pinned, SIZE, stream)


@sequence
def _dead_stream_waits(api: Api) -> Any:
    """A destroyed stream waited for."""
    stream = api.stream()
    api.cudaStreamDestroy(stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _event_twice(api: Api) -> Any:
    """An event destroyed twice."""
    event = api.event()
    api.cudaEventDestroy(event)
    api.cudaEventDestroy(event)


@sequence
def _dead_event(api: Api) -> Any:
    """A destroyed event recorded."""
    stream, event = api.stream(), api.event()
    api.cudaEventDestroy(event)
    api.cudaEventRecord(event, stream)


@sequence
def _never_recorded(api: Api) -> Any:
    """The time between events that were never recorded."""
    api.cudaEventElapsedTime(api.event(), api.event())


@sequence
def _wait_never_recorded(api: Api) -> Any:
    """A stream that waits for an event that was never recorded."""
    api.cudaStreamWaitEvent(api.stream(), api.event(), 0)


@sequence
def _synchronize_never_recorded(api: Api) -> Any:
    """The host waits for an event that was never recorded."""
    api.cudaEventSynchronize(api.event())


@sequence
def _unfinished(api: Api) -> Any:
    """The time of an event whose work is under way."""
    stream, start, end = api.stream(), api.event(), api.event()
    memory, pinned = api.cudaMalloc(256 << 20 if api.is_real else SIZE), api.pinned(256 << 20 if api.is_real else SIZE)
    api.cudaEventRecord(start, stream)
    for _ in range(4):
        api.up(memory, pinned, 256 << 20 if api.is_real else SIZE, stream)
    api.cudaEventRecord(end, stream)
    try:
        api.cudaEventElapsedTime(start, end)
    finally:
        if api.is_real:
            api.cudaStreamSynchronize(stream)


@sequence
def _no_times(api: Api) -> Any:
    """The time of an event that takes none."""
    import cuda.bindings.runtime as real

    flags = getattr(real, "cudaEventDisableTiming", 2)
    stream, start = api.stream(), api.event()
    end = api.cudaEventCreateWithFlags(flags)
    for event in (start, end):
        api.cudaEventRecord(event, stream)
    api.cudaStreamSynchronize(stream)
    api.cudaEventElapsedTime(start, end)


@sequence
def _times(api: Api) -> Any:
    """The time between two events that were waited for."""
    stream, start, end = api.stream(), api.event(), api.event()
    for event in (start, end):
        api.cudaEventRecord(event, stream)
    api.cudaEventSynchronize(end)
    return api.cudaEventElapsedTime(start, end) >= 0


@sequence
def _replay(api: Api) -> Any:
    """A captured copy replayed."""
    memory, sent, got, stream = api.cudaMalloc(SIZE), api.pinned(), api.pinned(), api.stream()
    host(sent, SIZE)[:] = 3
    ready = api.captured(stream, memory, sent)
    api.cudaGraphLaunch(ready, stream)
    api.down(got, memory, SIZE, stream)
    api.cudaStreamSynchronize(stream)
    return int(host(got, SIZE).astype(np.int64).sum())


@sequence
def _capture_runs_nothing(api: Api) -> Any:
    """What is captured does not run."""
    memory, sent, got, stream = api.cudaMalloc(SIZE), api.pinned(), api.pinned(), api.stream()
    for value in (5, 9):
        host(sent, SIZE)[:] = value
        if value == 5:
            api.up(memory, sent, SIZE, stream)
            api.cudaStreamSynchronize(stream)
    api.captured(stream, memory, sent)
    api.down(got, memory, SIZE, stream)
    api.cudaStreamSynchronize(stream)
    return int(host(got, 1)[0])


def _forbidden(mode: str, what: str, other_thread: bool) -> None:
    """Register a call that may be forbidden while a stream is captured; the capture is ended after it."""

    def run(api: Api) -> Any:
        stream, idle, event = api.stream(), api.stream(), api.event()
        memory, pinned = api.cudaMalloc(SIZE), api.pinned()
        calls = {
            "cudaMalloc": lambda: api.cudaMalloc(SIZE),
            "cudaFree": lambda: api.cudaFree(memory),
            "cudaHostAlloc": lambda: api.pinned(),
            "cudaFreeHost": lambda: api.cudaFreeHost(pinned),
            "cudaStreamSynchronize of an idle stream": lambda: api.cudaStreamSynchronize(idle),
            "cudaStreamSynchronize of the captured stream": lambda: api.cudaStreamSynchronize(stream),
            "cudaEventSynchronize": lambda: api.cudaEventSynchronize(event),
            "cudaMemcpyAsync on another stream": lambda: api.up(memory, pinned, SIZE, idle),
            "cudaEventRecord on another stream": lambda: api.cudaEventRecord(event, idle),
            "cuModuleLoadData": lambda: api.kernel(),
        }
        api.cudaEventRecord(event, idle)
        api.cudaStreamSynchronize(idle)
        api.begin(stream, mode)
        result = None
        try:
            in_thread(calls[what]) if other_thread else calls[what]()
        except Refused as error:
            result = error
        try:
            api.cudaStreamEndCapture(stream)
        except Refused as error:
            result = result or error
        if result is not None:
            raise result

    where = ", in another thread" if other_thread else ""
    SEQUENCES[f"{what} during a capture, mode {mode}{where}"] = run


for _mode in ("ThreadLocal", "Global", "Relaxed"):
    for _what in ("cudaMalloc", "cudaFree", "cudaStreamSynchronize of an idle stream"):
        _forbidden(_mode, _what, False)
    for _what in ("cudaMalloc", "cudaHostAlloc", "cudaEventSynchronize", "cudaMemcpyAsync on another stream"):
        _forbidden(_mode, _what, True)
for _what in (
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaStreamSynchronize of the captured stream",
    "cudaEventSynchronize",
    "cudaMemcpyAsync on another stream",
    "cudaEventRecord on another stream",
    "cuModuleLoadData",
):
    _forbidden("ThreadLocal", _what, False)


@sequence
def _event_in_capture(api: Api) -> Any:
    """An event recorded on the captured stream."""
    stream, event = api.stream(), api.event()
    api.begin(stream)
    api.cudaEventRecord(event, stream)
    api.cudaStreamEndCapture(stream)


@sequence
def _capture_twice(api: Api) -> Any:
    """A capture begun on a stream that captures."""
    stream = api.stream()
    api.begin(stream)
    try:
        api.begin(stream)
    finally:
        if api.is_real:
            api.runtime.cudaStreamEndCapture(stream)


@sequence
def _end_without_begin(api: Api) -> Any:
    """A capture ended that never began."""
    api.cudaStreamEndCapture(api.stream())


@sequence
def _end_in_another_thread(api: Api) -> Any:
    """A capture ended in another thread than it began in."""
    stream = api.stream()
    api.begin(stream)
    in_thread(lambda: api.cudaStreamEndCapture(stream))


@sequence
def _empty_graph(api: Api) -> Any:
    """A graph of nothing, launched."""
    stream = api.stream()
    api.begin(stream)
    ready = api.cudaGraphInstantiate(api.cudaStreamEndCapture(stream), 0)
    api.cudaGraphLaunch(ready, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _dead_graph(api: Api) -> Any:
    """A graph launched after it was destroyed."""
    stream = api.stream()
    ready = api.captured(stream, api.cudaMalloc(SIZE), api.pinned())
    api.cudaGraphExecDestroy(ready)
    api.cudaGraphLaunch(ready, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _graph_twice(api: Api) -> Any:
    """A graph destroyed twice."""
    ready = api.captured(api.stream(), api.cudaMalloc(SIZE), api.pinned())
    api.cudaGraphExecDestroy(ready)
    api.cudaGraphExecDestroy(ready)


@sequence
def _graph_freed(api: Api) -> Any:
    """A graph launched after the memory that it copies to was freed."""
    stream, memory = api.stream(), api.cudaMalloc(64 << 20 if api.is_real else SIZE)
    ready = api.captured(stream, memory, api.pinned())
    api.cudaFree(memory)
    api.cudaGraphLaunch(ready, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _free_under_way(api: Api) -> Any:
    """Device memory freed while a copy to it is under way."""
    stream, memory, pinned = api.stream(), api.cudaMalloc(SIZE), api.pinned()
    api.up(memory, pinned, SIZE, stream)
    api.cudaFree(memory)


@sequence
def _destroy_under_way(api: Api) -> Any:
    """A stream destroyed while its copy is under way."""
    stream, memory, pinned = api.stream(), api.cudaMalloc(SIZE), api.pinned()
    api.up(memory, pinned, SIZE, stream)
    api.cudaStreamDestroy(stream)
    pause()


@sequence
def _race(api: Api) -> Any:
    """Two streams that write the same memory, unordered."""
    memory, pinned = api.cudaMalloc(SIZE), api.pinned()
    for stream in (api.stream(), api.stream()):
        api.up(memory, pinned, SIZE, stream)


@sequence
def _kernel(api: Api) -> Any:
    """A kernel that copies an image to its canvas."""
    stream, image, canvas, pinned = api.stream(), api.cudaMalloc(SIZE), api.cudaMalloc(SIZE), api.pinned()
    host(pinned, SIZE)[:] = np.arange(SIZE) % 253
    api.up(image, pinned, SIZE, stream)
    api.launch(image, canvas, stream)
    got = api.pinned()
    api.down(got, canvas, 16 * 16 * 3, stream)
    api.cudaStreamSynchronize(stream)
    return int(host(got, 16 * 16 * 3).astype(np.int64).sum())


@sequence
def _kernel_few_arguments(api: Api) -> Any:
    """A kernel that is given no arguments."""
    stream, image, canvas = api.stream(), api.cudaMalloc(SIZE), api.cudaMalloc(SIZE)
    api.launch(image, canvas, stream, arguments=((), ()))
    api.cudaStreamSynchronize(stream)


@sequence
def _kernel_wrong_types(api: Api) -> Any:
    """A kernel whose arguments have the sizes of others."""
    stream, image, canvas = api.stream(), api.cudaMalloc(SIZE), api.cudaMalloc(SIZE)
    values = (image, 48, 3, 1, 1, 16, 16, canvas, 16, 16, 16, 16, 0, 0)
    api.launch(image, canvas, stream, arguments=(values, (ctypes.c_uint64, *[ctypes.c_int32] * 13)))
    api.cudaStreamSynchronize(stream)


@sequence
def _kernel_large_block(api: Api) -> Any:
    """A kernel in blocks of more threads than there can be."""
    stream, image, canvas = api.stream(), api.cudaMalloc(SIZE), api.cudaMalloc(SIZE)
    api.launch(image, canvas, stream, block=(64, 32, 1))


@sequence
def _kernel_freed(api: Api) -> Any:
    """A kernel that writes memory that was freed."""
    stream, image = api.stream(), api.cudaMalloc(SIZE)
    canvas = api.cudaMalloc(64 << 20 if api.is_real else SIZE)
    api.cudaFree(canvas)
    api.launch(image, canvas, stream)
    api.cudaStreamSynchronize(stream)


@sequence
def _kernel_out_of_range(api: Api) -> Any:
    """A kernel that writes far beyond its memory."""
    stream, image, side = api.stream(), api.cudaMalloc(3 * 1024 * 1024), 1024
    canvas = api.cudaMalloc(SIZE)
    api.launch(image, int(canvas) + (1 << 40 if api.is_real else 0), stream, side=side)
    api.cudaStreamSynchronize(stream)


@sequence
def _no_nul(api: Api) -> Any:
    """A module of something that is not PTX."""
    if api.is_real:
        api.cuModuleLoadData(b"nonsense\0")
        return
    raise Refused("the stand-in reads PTX only for the kernel's parameters")


@sequence
def _unloaded(api: Api) -> Any:
    """A module unloaded twice."""
    from pathlib import Path

    from runtime.cuda import intake

    ptx = Path(intake.__file__).with_name("canvas.ptx").read_bytes()
    module = api.cuModuleLoadData(ptx + b"\0")
    api.cuModuleUnload(module)
    api.cuModuleUnload(module)
