"""What a canvas, a copy, a launch and a replay of a CUDA graph cost: a part of the step `driver`."""

from __future__ import annotations

import importlib.util
import statistics
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.driver_calls import BLOCK, KERNEL, PTX, arguments, grid_of
from benchmarks.gpu.driver_site import Site, out
from runtime.cuda import Binding, Cuda, open_cuda


def speed(site: Site) -> None:
    """What a canvas, a copy, a launch and a replay cost; rounds of the bindings alternate in this process."""
    bindings: list[Binding] = ["cuda-python"]
    if site.is_real and importlib.util.find_spec("pycuda") is not None:
        bindings.append("pycuda")
    opened = {binding: open_cuda(0, binding) for binding in bindings}
    rounds = 7 if site.is_real else 1
    figures: dict[tuple[str, Binding], list[float]] = {}
    for _ in range(rounds):
        for measure in (canvas_us, copy_in, copy_out, launch_us, launch_and_wait_us, plain_20_us, replay_20_us):
            for binding, cuda in opened.items():
                if measure is replay_20_us and cuda.graphs is None:
                    continue
                with cuda.current():
                    value = measure(site, cuda)
                figures.setdefault(((measure.__doc__ or "").rstrip("."), binding), []).append(value)
    for what, values in python_us(opened["cuda-python"]).items():
        figures[what, "cuda-python"] = values
    for (what, binding), values in figures.items():
        middle = statistics.median(values)
        row = {"median": round(middle, 3), "least": round(min(values), 3), "most": round(max(values), 3)}
        out("driver: speed", what=what, binding=binding, **row, rounds=len(values), device=opened[binding].device.name)
    for cuda in opened.values():
        cuda.close()


def _canvases(cuda: Cuda, source_hw: tuple[int, int], canvas_hw: tuple[int, int], run: Callable[..., float]) -> float:
    """`run(launch, stream)`, where `launch()` queues the kernel."""
    image, canvas = cuda.alloc(source_hw[0] * source_hw[1] * 3), cuda.alloc(canvas_hw[0] * canvas_hw[1] * 3)
    stream, loaded = cuda.create_stream(), cuda.load_kernel(PTX.read_bytes(), KERNEL)
    given = arguments(cuda.address(image), source_hw, cuda.address(canvas), canvas_hw)

    def launch() -> None:
        cuda.run_kernel(loaded, grid_of(canvas_hw), BLOCK, given, stream)

    launch()
    cuda.synchronize_stream(stream)
    result = run(launch, stream)
    cuda.synchronize_stream(stream)
    cuda.unload_kernel(loaded)
    cuda.free(image)
    cuda.free(canvas)
    cuda.destroy_stream(stream)
    return result


def _timed(cuda: Cuda, stream: Any, times: int, queue: Callable[[], None]) -> float:
    """Microseconds of the device for one of `times` runs of what `queue` puts into the stream."""
    start, end = cuda.create_event(), cuda.create_event()
    cuda.record(start, stream)
    for _ in range(times):
        queue()
    cuda.record(end, stream)
    cuda.synchronize_event(end)
    seconds = cuda.seconds_between(start, end)
    cuda.destroy_event(start)
    cuda.destroy_event(end)
    return seconds / times * 1e6


def canvas_us(site: Site, cuda: Cuda) -> float:
    """Kernel of a 1080 × 1920 image on an 800 × 1344 canvas, µs."""
    sides = ((1080, 1920), (800, 1344)) if site.is_real else ((108, 192), (80, 134))
    times = 100 if site.is_real else 1
    return _canvases(cuda, *sides, lambda launch, stream: _timed(cuda, stream, times, launch))


def _copy(site: Site, cuda: Cuda, is_in: bool) -> float:
    size, times = (256 << 20, 4) if site.is_real else (1 << 16, 1)
    memory, pinned, stream = cuda.alloc(size), cuda.alloc_pinned(size), cuda.create_stream()

    def queue() -> None:
        if is_in:
            cuda.copy_to_device(cuda.address(memory), pinned, stream)
        else:
            cuda.copy_to_host(pinned, cuda.address(memory), stream)

    if is_in:
        pinned.fill(1)
    took = _timed(cuda, stream, times, queue)
    cuda.synchronize_stream(stream)
    cuda.free(memory)
    cuda.free_pinned(pinned)
    cuda.destroy_stream(stream)
    return size / took / 1e3


def copy_in(site: Site, cuda: Cuda) -> float:
    """Pinned memory to the device, 256 MiB, GB/s."""
    return _copy(site, cuda, True)


def copy_out(site: Site, cuda: Cuda) -> float:
    """Device to pinned memory, 256 MiB, GB/s."""
    return _copy(site, cuda, False)


def _small(cuda: Cuda, run: Callable[..., float]) -> float:
    return _canvases(cuda, (8, 8), (8, 8), run)


def _wall(times: int, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


def launch_us(site: Site, cuda: Cuda) -> float:
    """Queueing a small kernel, µs of the caller."""
    return _small(cuda, lambda launch, stream: _wall(200 if site.is_real else 2, launch))


def launch_and_wait_us(site: Site, cuda: Cuda) -> float:
    """A small kernel queued and waited for, µs of the caller."""

    def run(launch: Callable[[], None], stream: Any) -> float:
        def both() -> None:
            launch()
            cuda.synchronize_stream(stream)

        return _wall(200 if site.is_real else 2, both)

    return _small(cuda, run)


def python_us(cuda: Cuda) -> dict[str, list[float]]:
    """Microseconds of the caller to queue a kernel, without cuLaunchKernel itself: no GPU is needed.

    It is told for arguments by address, as the runtime gives them, and for values with their ctypes types, which
    cuLaunchKernel would have to convert besides. Both alternate.
    """
    with cuda.current():
        stream, loaded = cuda.create_stream(), cuda.load_kernel(PTX.read_bytes(), KERNEL)
        driver = loaded.driver
        loaded.driver = idle = types.SimpleNamespace(CUstream=driver.CUstream, cuLaunchKernel=lambda *_: (0,))
        given = arguments(1 << 40, (8, 8), 1 << 41, (8, 8))

        def with_types() -> None:
            values = tuple(argument.item() for argument in given)
            kinds = tuple(np.ctypeslib.as_ctypes_type(argument.dtype) for argument in given)
            idle.cuLaunchKernel(loaded.function, 1, 1, 1, *BLOCK, 1, 0, idle.CUstream(int(stream)), (values, kinds), 0)

        forms: dict[str, Callable[[], None]] = {
            "arguments by address": lambda: cuda.run_kernel(loaded, (1, 1), BLOCK, given, stream),
            "arguments with ctypes types": with_types,
        }
        taken: dict[str, list[float]] = {}
        for number in range(8):
            for form, work in forms.items():
                took = _wall(500, work)
                if number:  # the first warms up
                    taken.setdefault(f"Queueing a kernel less cuLaunchKernel, {form}, µs of the caller", []).append(
                        took
                    )
        loaded.driver = driver
        cuda.unload_kernel(loaded)
        cuda.destroy_stream(stream)
    return taken


def _twenty(site: Site, cuda: Cuda, queue: Callable[[Callable[[], None], Any], Callable[[], None]]) -> float:
    def run(launch: Callable[[], None], stream: Any) -> float:
        work = queue(launch, stream)

        def both() -> None:
            work()
            cuda.synchronize_stream(stream)

        return _wall(50 if site.is_real else 1, both)

    return _small(cuda, run)


def plain_20_us(site: Site, cuda: Cuda) -> float:
    """20 small kernels queued one by one and waited for, µs of the caller."""
    return _twenty(site, cuda, lambda launch, _: lambda: [launch() for _ in range(20)] and None)


def replay_20_us(site: Site, cuda: Cuda) -> float:
    """The same 20 kernels as one CUDA graph, µs of the caller."""
    graphs = cuda.graphs
    assert graphs is not None
    made = []

    def queue(launch: Callable[[], None], stream: Any) -> Callable[[], None]:
        graphs.begin_capture(stream)
        for _ in range(20):
            launch()
        made.append(graphs.end_capture(stream))
        return lambda: graphs.launch(made[0], stream)

    took = _twenty(site, cuda, queue)
    graphs.destroy_graph(made[0])
    return took
