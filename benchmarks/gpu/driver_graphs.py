"""Sequences of captures, graphs and kernels, for the stand-in and the driver: see `driver_verdicts`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.driver_verdicts import SEQUENCES, SIZE, Api, Refused, host, in_thread, sequence
from runtime.cuda import intake


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
def _kernel(api: Api) -> Any:
    """A kernel that copies an image to its canvas."""
    return _sum_of_canvas(api, lambda image, canvas: {})


@sequence
def _kernel_by_address(api: Api) -> Any:
    """A kernel whose arguments are given by their addresses."""
    integer, long, address = np.int32, np.int64, np.uint64
    kinds = (address, *[long] * 3, *[integer] * 3, address, *[integer] * 6)
    packed = np.dtype([(f"{index}", kind) for index, kind in enumerate(kinds)])
    values = np.zeros((), packed)
    offsets = np.cumsum([0, *(np.dtype(kind).itemsize for kind in kinds[:-1])])
    addresses = (values.ctypes.data + offsets).astype(np.uint64)

    def given(image: int, canvas: int) -> dict[str, Any]:
        values[()] = (int(image), 48, 3, 1, 1, 16, 16, int(canvas), 16, 16, 16, 16, 0, 0)
        return {"arguments": addresses}

    return _sum_of_canvas(api, given)


def _sum_of_canvas(api: Api, given: Callable[[int, int], dict[str, Any]]) -> int:
    stream, image, canvas, pinned = api.stream(), api.cudaMalloc(SIZE), api.cudaMalloc(SIZE), api.pinned()
    host(pinned, SIZE)[:] = np.arange(SIZE) % 253
    api.up(image, pinned, SIZE, stream)
    api.launch(image, canvas, stream, **given(image, canvas))
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
    ptx = Path(intake.__file__).with_name("canvas.ptx").read_bytes()
    module = api.cuModuleLoadData(ptx + b"\0")
    api.cuModuleUnload(module)
    api.cuModuleUnload(module)
