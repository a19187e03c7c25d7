"""Sequences of memory, copies, streams, events and kernels, for the stand-in and the driver: see `driver_verdicts`."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.driver_verdicts import SIZE, Api, Refused, host, pause, sequence


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
def _attributes_of_pinned(api: Api) -> Any:
    """The kind and the device of pinned memory."""
    found = api.cudaPointerGetAttributes(api.pinned())
    return [int(found.type), int(found.device)]


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
