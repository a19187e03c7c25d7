"""Every method of the seam to CUDA: a part of the step `driver`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.driver_site import Producer, Site, check, out
from runtime.cuda import Cuda, CudaError, Graphs, OutOfMemory, intake, open_cuda, pci_bus_id
from runtime.cuda.intake import Intake
from runtime.images.preprocess import make_batch, place_batch
from runtime.manifest import Preprocess

TABLE = "driver: calls"
PTX = Path(intake.__file__).with_name("canvas.ptx")
KERNEL, BLOCK = "lay_on_canvas", (32, 8)


class Watched:
    """Notes which methods of the seam are called."""

    def __init__(self, real: Any, called: set[str]) -> None:
        self._real, self._called = real, called

    def __getattr__(self, name: str) -> Any:
        self._called.add(name)
        found = getattr(self._real, name)
        return Watched(found, self._called) if name == "graphs" and found is not None else found


def calls(site: Site) -> None:
    """Every method, with what it does checked; a row per group, and one that names methods never called."""
    called: set[str] = set()
    cuda: Any = Watched(site.cuda(), called)
    for each in (device, copies, times, order, kernel, graph, refusals, images):
        name = " ".join((each.__doc__ or "").split("\n")[0].rstrip(".").split())
        with check(TABLE, name, binding=site.binding) as more, cuda.current():
            each(site, cuda, more)
        gc.collect()
    with check(TABLE, "closing", binding=site.binding):
        cuda.close()
    missing = {name for name in (*vars(Cuda), *vars(Graphs)) if not name.startswith("_")} - called
    if cuda.graphs is None:
        missing -= set(vars(Graphs))
    out(TABLE, binding=site.binding, check="every method was called", result="ok", never_called=sorted(missing))


def device(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """The device describes itself."""
    found = cuda.device
    more["device"] = f"{found.name}, {found.compute_capability}, {found.memory_bytes} bytes, {found.clock_mhz} MHz"
    more["bus_id"] = pci_bus_id(0)
    assert cuda.binding == site.binding
    assert found.clock_mhz > 100
    assert 0 < cuda.free_bytes() <= found.memory_bytes


def _round_trip(cuda: Cuda, size: int) -> np.ndarray:
    """Bytes that were sent to the device and fetched on another stream, less those that were sent."""
    memory, sent, got = cuda.alloc(size), cuda.alloc_pinned(size), cuda.alloc_pinned(size)
    up, down, copied = cuda.create_stream(), cuda.create_stream(), cuda.create_event()
    sent[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    cuda.copy_to_device(cuda.address(memory), sent, up)
    cuda.record(copied, up)
    cuda.wait(down, copied)
    cuda.copy_to_host(got, cuda.address(memory), down)
    cuda.synchronize_stream(down)
    different = got != sent
    cuda.free(memory)
    cuda.free_pinned(sent)
    cuda.free_pinned(got)
    cuda.destroy_event(copied)
    cuda.destroy_stream(up)
    cuda.destroy_stream(down)
    return different


def copies(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """A copy there and back over two streams, of sizes from one byte on."""
    for size in (1, 255, 4096, 1 << 20, (256 << 20) + 3 if site.is_real and not site.is_small else 100_003):
        assert not _round_trip(cuda, size).any(), f"{size} bytes differ"


def times(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """Events time a copy."""
    size = 1 << 24
    memory, sent = cuda.alloc(size), cuda.alloc_pinned(size)
    stream, start, end = cuda.create_stream(), cuda.create_event(), cuda.create_event()
    sent.fill(1)
    cuda.record(start, stream)
    cuda.copy_to_device(cuda.address(memory), sent, stream)
    cuda.record(end, stream)
    cuda.synchronize_event(end)
    more["note"] = f"{cuda.seconds_between(start, end) * 1e6:.1f} µs for 16 MiB"
    assert 0 < cuda.seconds_between(start, end) < 1
    cuda.free(memory)
    cuda.free_pinned(sent)
    for event in (start, end):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)


def order(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """Work follows somebody else's stream, and the device of memory is told."""
    memory, sent, got = cuda.alloc(1 << 22), cuda.alloc_pinned(1 << 22), cuda.alloc_pinned(1 << 22)
    producer, consumer, event = cuda.create_stream(), cuda.create_stream(), cuda.create_event()
    for number in range(20):
        sent.fill(number)
        cuda.copy_to_device(cuda.address(memory), sent, producer)
        cuda.follow(consumer, cuda.address(producer), event)
        cuda.copy_to_host(got, cuda.address(memory), consumer)
        cuda.synchronize_stream(consumer)
        assert (got == number).all(), f"round {number}: the copy didn't wait"
    for default in (1, 2):  # CUDA's handles of its default streams
        cuda.follow(consumer, default, event)
        if cuda.binding == "cuda-python":  # pycuda has waited for the device, without the event
            cuda.synchronize_event(event)
    cuda.synchronize_stream(consumer)
    assert cuda.device_of(cuda.address(memory) + 5) == 0
    cuda.free(memory)
    cuda.free_pinned(sent)
    cuda.free_pinned(got)
    cuda.destroy_event(event)
    cuda.destroy_stream(producer)
    cuda.destroy_stream(consumer)


def arguments(source: int, side_hw: tuple[int, int], canvas: int, canvas_hw: tuple[int, int]) -> list[np.generic]:
    """Arguments of the kernel that resizes a contiguous image onto a canvas that it fills."""
    height, width = side_hw
    return [
        np.uint64(source),
        *np.array([3 * width, 3, 1], np.int64),
        *np.array([1, height, width], np.int32),
        np.uint64(canvas),
        *np.array([*canvas_hw, *canvas_hw, False, 0], np.int32),
    ]


def grid_of(canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """The kernel's grid for a canvas."""
    return -(-canvas_hw[1] // BLOCK[0]), -(-canvas_hw[0] // BLOCK[1])


def kernel(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """The kernel is loaded, run and unloaded; an image of the canvas's size is copied as it is."""
    side = (48, 70)
    size = side[0] * side[1] * 3
    image, canvas, pinned = cuda.alloc(size), cuda.alloc(size), cuda.alloc_pinned(size)
    stream, loaded = cuda.create_stream(), cuda.load_kernel(PTX.read_bytes(), KERNEL)
    sent = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    pinned[:] = sent
    cuda.copy_to_device(cuda.address(image), pinned, stream)
    cuda.run_kernel(
        loaded, grid_of(side), BLOCK, arguments(cuda.address(image), side, cuda.address(canvas), side), stream
    )
    cuda.synchronize_stream(stream)
    cuda.copy_to_host(pinned, cuda.address(canvas), stream)
    cuda.synchronize_stream(stream)
    np.testing.assert_array_equal(pinned, sent)
    cuda.unload_kernel(loaded)
    cuda.free(image)
    cuda.free(canvas)
    cuda.free_pinned(pinned)
    cuda.destroy_stream(stream)


def graph(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """A graph is captured and replayed on what its memory holds then."""
    if cuda.graphs is None:
        more["result"] = "not run: this binding has no CUDA graphs"
        return
    memory, sent, got = cuda.alloc(4096), cuda.alloc_pinned(4096), cuda.alloc_pinned(4096)
    stream = cuda.create_stream()
    sent.fill(0)
    cuda.graphs.begin_capture(stream)
    cuda.copy_to_device(cuda.address(memory), sent, stream)
    cuda.copy_to_host(got, cuda.address(memory), stream)
    ready = cuda.graphs.end_capture(stream)
    for number in (7, 9) if site.is_real else ():  # the stand-in lets no captured copy's source change
        sent.fill(number)
        cuda.graphs.launch(ready, stream)
        cuda.synchronize_stream(stream)
        assert (got == number).all(), "the replay copied something else"
    if not site.is_real:
        cuda.graphs.launch(ready, stream)
        cuda.synchronize_stream(stream)
    cuda.graphs.destroy_graph(ready)
    cuda.free(memory)
    cuda.free_pinned(sent)
    cuda.free_pinned(got)
    cuda.destroy_stream(stream)


def refusals(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """Memory that is not there and a device that doesn't exist are errors of ours, and the device stays usable."""
    if site.is_small and site.is_real:
        more["result"] = "not run: a sanitizer counts errors that are asked for"
        return
    problems = []
    for what, attempt, wanted in (
        ("alloc", lambda: cuda.alloc(cuda.device.memory_bytes * 2), OutOfMemory),
        ("device 99", lambda: open_cuda(99, site.binding), CudaError),
        ("nonsense instead of PTX", lambda: cuda.load_kernel(b"nonsense", KERNEL), CudaError),
    ):
        if what.startswith("nonsense") and not site.is_real:
            continue
        try:
            attempt()
        except wanted as error:
            more[what] = str(error)
        except Exception as error:
            problems.append(f"{what}: {type(error).__name__}: {error}")
        else:
            problems.append(f"{what}: no error")
    cuda.free(cuda.alloc(1 << 20))
    assert not problems, "; ".join(problems)


def images(site: Site, cuda: Cuda, more: dict[str, Any]) -> None:
    """The intake's canvases have OpenCV's pixels for many sizes, reduced and not."""
    random = np.random.default_rng(3)
    sizes = [tuple(int(side) for side in random.integers(1, 400, 2)) for _ in range(8 if site.is_small else 60)]
    taker, producer = Intake(cuda), Producer(cuda)
    for divide_large in (True, False):
        pre = Preprocess(short_side=64, long_side=128, divide_large=divide_large)
        pixels = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sizes]
        wanted = make_batch(pixels, pre)
        placed = place_batch([taker.take(producer.frame(each))[0] for each in pixels], pre, wanted.canvas_hw)
        target, got = cuda.alloc(wanted.images.nbytes), cuda.alloc_pinned(wanted.images.nbytes)
        taker.fill_and_wait(placed.images, cuda.address(target))
        stream = cuda.create_stream()
        cuda.copy_to_host(got, cuda.address(target), stream)
        cuda.synchronize_stream(stream)
        np.testing.assert_array_equal(got.reshape(wanted.images.shape), wanted.images)
        del placed
        cuda.free(target)
        cuda.free_pinned(got)
        cuda.destroy_stream(stream)
        del stream
    taker.close()
    producer.close()
    more["images"] = 2 * len(sizes)
