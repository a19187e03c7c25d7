"""The TensorRT backend's life, with a network that computes a known function: part of the step `driver`."""

from __future__ import annotations

import gc
import itertools
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.driver_site import LARGEST, Producer, Site, check, equal, out
from runtime.backends import BackendError, BatchTooLarge
from runtime.backends.trt.backend import TrtBackend
from runtime.cuda import Cuda
from runtime.images.preprocess import make_batch, place_batch
from runtime.manifest import Preprocess
from runtime.stopwatch import Stopwatch
from tests.support.engines import assert_same, feed
from tests.support.standin.network import expected

MIB = 1 << 20
TABLE = "driver: backend"


def life(site: Site) -> None:
    """Every check; those that provoke errors of CUDA's are left out at the small size, which runs under a sanitizer."""
    with tempfile.TemporaryDirectory() as folder:
        engine = site.engine(Path(folder))
        checks = [threads, stopwatch, graphs, growth, canvases, torch_tensors, closing]
        if not site.is_small:
            checks += [failing_capture, failing_run, out_of_memory]
        for each in checks:
            name = " ".join((each.__doc__ or "").split("\n")[0].rstrip(".").split())
            with check(TABLE, name, binding=site.binding) as more:
                each(site, engine, more)
            gc.collect()
        leaks(site, engine)


def _open(site: Site, engine: Path, **options: Any) -> TrtBackend:
    return TrtBackend(engine, binding=site.binding, **options)


def threads(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """48 calls in 4 threads give the results of one thread, bit for bit."""
    shapes = (
        [(1, 64, 64), (4, 96, 128), (2, 128, 96)] if site.is_small else [(1, 320, 320), (8, 256, 320), (2, 512, 96)]
    )
    feeds = [feed(*shapes[number % 3], seed=number) for number in range(48)]
    site.delay(100_000)
    with _open(site, engine, slots=1) as backend:
        one = [backend.infer(*each) for each in feeds]
    with _open(site, engine, slots=3) as backend, ThreadPoolExecutor(4) as pool:
        for _ in range(1 if site.is_small else 3):
            many = list(pool.map(lambda each: backend.infer(*each), feeds))
            different = sum(not equal(a, b) for a, b in zip(many, one, strict=True))
            assert different == 0, f"{different} of 48 calls in threads differ from one thread's"
    site.delay(0)
    wrong = sum(not equal(a, expected(*each)) for a, each in zip(one, feeds, strict=True))
    assert wrong == 0, f"{wrong} of 48 results differ from the reference"
    more["calls"] = 48


def stopwatch(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """Times of the copies and of the network are positive and no longer than the call."""
    with _open(site, engine) as backend:
        images, sizes = feed(8, 96, 128)
        backend.infer(images, sizes)
        watch = Stopwatch()
        began = time.perf_counter()
        backend.infer(images, sizes, all_candidates=True, stopwatch=watch)
        wall = time.perf_counter() - began
    seconds = {name: watch.seconds[name] for name in ("copy_in", "infer", "copy_out")}
    more.update({f"{name}_us": round(each * 1e6, 1) for name, each in seconds.items()}, call_us=round(wall * 1e6, 1))
    assert min(seconds.values()) > 0, f"a time of nothing: {seconds}"
    assert sum(seconds.values()) < wall or not site.is_real, f"{seconds} in a call of {wall} s"


def graphs(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """CUDA graphs are captured and replayed over five shapes, of which three stay prepared."""
    shapes = [(1, 64, 64), (3, 96, 64), (2, 64, 128), (1, 128, 128), (4, 32, 32)]
    with warnings.catch_warnings(record=True) as caught, _open(site, engine, slots=1, most_shapes=3) as backend:
        warnings.simplefilter("always")
        more["graphs"] = backend.description.rsplit(", ", 1)[1]
        for seed, shape in enumerate(itertools.chain(shapes * 2, [shapes[-1]] * 4, shapes[-3:] * 4)):
            given = feed(*shape, seed=seed)
            assert_same(backend.infer(*given), expected(*given))
    assert not caught, f"warned: {caught[0].message}"


def growth(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """Buffers grow with the shapes, and results stay right while graphs of smaller shapes are dropped."""
    steps = [(1, 32, 32), (2, 64, 64), (1, 32, 32), (8, 96, 96), (2, 64, 64), (4, 256, 256), (1, 32, 32), (16, 64, 64)]
    with _open(site, engine, slots=1) as backend:
        for shape in steps:
            for seed in range(3):
                given = feed(*shape, seed=seed)
                assert_same(backend.infer(*given, all_candidates=seed == 2), expected(*given, all_candidates=seed == 2))


def canvases(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """Images from device memory, made late on a stream of their own, give the pixels and results of the host's."""
    pre = Preprocess(short_side=96, long_side=160)
    images = [
        feed(1, *sides, seed=seed)[0][0] for seed, sides in enumerate([(96, 128), (192, 256), (100, 90), (57, 111)])
    ]
    wanted = make_batch(images, pre)
    cuda = site.cuda()
    producer = Producer(cuda)
    with _open(site, engine, slots=2) as backend:
        reference = expected(wanted.images, wanted.image_sizes)
        for _ in range(3):
            taken = [backend.intake().take(producer.frame(image))[0] for image in images]
            placed = place_batch(taken, pre, wanted.canvas_hw)
            assert_same(backend.infer(placed.images, placed.image_sizes), reference)
            np.testing.assert_array_equal(backend.intake().to_host(taken[3]), images[3])
            finished = producer.frame(wanted.images)
            assert_same(backend.infer(finished, wanted.image_sizes), reference)
        del taken, placed
    producer.close()
    cuda.close()


def torch_tensors(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """Tensors of torch, finished late on streams of their own, give the results of the host's arrays."""
    if not site.is_real or site.is_small:
        more["result"] = "not run: only on a GPU, without a sanitizer"
        return
    import torch

    given = feed(8, 256, 256)
    reference = expected(*given)
    busy = torch.ones(4096, 4096, device="cuda")
    with _open(site, engine, slots=2) as backend:
        for _ in range(8):
            with torch.cuda.stream(torch.cuda.Stream()):
                tensor = torch.zeros(given[0].shape, dtype=torch.uint8, device="cuda")
                for _ in range(4):
                    (busy @ busy).sum()
                tensor.copy_(torch.from_numpy(given[0]).pin_memory(), non_blocking=True)
                assert_same(backend.infer(tensor, given[1]), reference)
    del tensor, busy
    torch.cuda.empty_cache()


def closing(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """Closing waits for calls in flight; later calls say that the backend was closed."""
    given = feed(2, 96, 96)
    reference = expected(*given)
    site.delay(2_000_000)
    problems, counts = [], []
    backend = _open(site, engine, slots=2)

    def call() -> None:
        done = 0
        try:
            while True:
                if not equal(backend.infer(*given), reference):
                    problems.append("a wrong result")
                done += 1
        except BackendError as error:
            if "was closed" not in str(error):
                problems.append(str(error))
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        counts.append(done)

    running = [threading.Thread(target=call) for _ in range(4)]
    for thread in running:
        thread.start()
    time.sleep(0.2)
    backend.close()
    for thread in running:
        thread.join(20)
    site.delay(0)
    more["calls"] = sum(counts)
    assert not problems, problems[0]
    assert len(counts) == 4, "a thread hangs"
    assert sum(counts) > 0, "no call ended"


def failing_capture(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """A capture that is invalidated warns, and the shape runs on without a graph."""
    given = feed(2, 64, 64)
    with _open(site, engine, slots=1) as backend:
        backend.infer(*given)
        if backend.description.endswith("no CUDA graphs"):
            more["result"] = "not run: this binding has no CUDA graphs"
            return
        site.stand_in.shared.failing_runs = 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                assert_same(backend.infer(*given), expected(*given))
        more["note"] = " ".join(str(caught[0].message).split()) if caught else ""
        assert len(caught) == 1, f"{len(caught)} warnings"


def failing_run(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """A run that TensorRT refuses is an error with its text, and the next call works."""
    given = feed(2, 64, 64)
    with _open(site, engine, slots=1) as backend:
        site.stand_in.shared.failing_runs = 1
        try:
            backend.infer(*given)
        except BackendError as error:
            more["note"] = str(error)
        assert "told to fail" in more.get("note", ""), "no error"
        assert_same(backend.infer(*given), expected(*given))


def _fill(cuda: Cuda, left: int) -> list[Any]:
    """Take the device's memory, in plain allocations, until about `left` bytes remain."""
    blocks, size = [], 1 << 30
    while size >= MIB:
        if cuda.free_bytes() - size < left:
            size //= 2
            continue
        try:
            blocks.append(cuda.alloc(size))
        except Exception:
            size //= 2
    return blocks


def out_of_memory(site: Site, engine: Path, more: dict[str, Any]) -> None:
    """With the device's memory used up, the advised batch runs; with the memory free again the large batch does."""
    cuda, batch = site.cuda(), LARGEST[0]
    sides = LARGEST[1:] if site.is_real else (128, 128)
    before = None
    if not site.is_real:
        before, site.stand_in.driver.memory = site.stand_in.driver.memory, 32 * MIB
    large = feed(batch, *sides)
    wrong = 0
    for left in (3, 6, 9, 12, 16, 24, 32, 48, 64) if site.is_real else (1, 2, 3):
        with _open(site, engine, slots=1) as backend:
            backend.infer(*feed(1, 32, 32))
            with cuda.current():
                blocks = _fill(cuda, left * MIB)
                free = cuda.free_bytes()
            row = {"binding": site.binding, "left_mib": left, "free_mib": round(free / MIB, 2), "asked": batch}
            advised, text = _advised(backend, large)
            used = _runs(backend, advised or 1, sides)
            # Where nothing is said to fit, a batch of one must not run either.
            is_right = text.startswith("BatchTooLarge") and (used == "ok") == (advised is not None)
            wrong += not is_right
            out("driver: out of memory", **row, advised=advised, tried=used, right=is_right, text=text)
            with cuda.current():
                for block in blocks:
                    cuda.free(block)
                blocks.clear()
            block = None
            again = _runs(backend, batch, sides)
            assert again == "ok", f"with the memory free again: {again}"
    if before is not None:
        site.stand_in.driver.memory = before
    cuda.close()
    assert wrong == 0, f"{wrong} advices were wrong"


def _advised(backend: TrtBackend, given: tuple[np.ndarray, np.ndarray]) -> tuple[int | None, str]:
    """The batch that the error of a batch that doesn't fit names, and its text."""
    try:
        backend.infer(*given)
    except BatchTooLarge as error:
        return error.fits, f"BatchTooLarge: {error}"
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    return None, "the batch ran"


def _runs(backend: TrtBackend, batch: int, sides: tuple[int, ...]) -> str:
    given = feed(batch, sides[0], sides[1], seed=1)
    try:
        result = backend.infer(*given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok" if equal(result, expected(*given)) else "a wrong result"


def leaks(site: Site, engine: Path) -> None:
    """Device memory is as free after many openings as after the first few."""
    warm, rounds = (2, 5) if not site.is_real else (5, 20) if site.is_small else (20, 200)
    given, frame = feed(2, 64, 64), feed(1, 96, 96)[0][0]
    cuda = site.cuda()
    pre = Preprocess(short_side=64, long_side=64)
    with check(TABLE, f"device memory over {rounds} openings", binding=site.binding) as more:
        free = 0
        for number in range(warm + rounds):
            if number == warm:
                with cuda.current():
                    free = cuda.free_bytes()
            producer = Producer(cuda)
            with _open(site, engine, slots=2) as backend:
                for _ in range(3):
                    backend.infer(*given)
                placed = place_batch(backend.intake().take(producer.frame(frame)), pre, (64, 64))
                backend.infer(placed.images, placed.image_sizes)
                del placed
            producer.close()
            del backend, producer
        gc.collect()
        with cuda.current():
            more["lost_bytes"] = free - cuda.free_bytes()
        assert more["lost_bytes"] <= 0, f"{more['lost_bytes']} bytes fewer are free"
    cuda.close()
