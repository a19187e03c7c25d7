"""Both bindings on the stand-in: the caller's context, host memory said to be a GPU's, and arguments of kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from benchmarks.gpu.driver_calls import BLOCK, KERNEL, PTX, arguments, grid_of
from runtime.cuda import Cuda, CudaError, open_cuda
from runtime.cuda.intake import Intake

from ...support.standin.driver import Driver
from ...support.standin.install import Binding, install
from ...support.standin.parts import StandinError
from ...support.standin.pycuda_module import make_pycuda

BINDINGS: tuple[Binding, ...] = ("cuda-python", "pycuda")


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in a new thread, in which no context is current."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def use(index: int, binding: Binding) -> None:
    """Open a device, use it and close it."""
    cuda = open_cuda(index, binding)
    with cuda.current():
        cuda.free(cuda.alloc(1 << 20))
    cuda.close()
    del cuda


@pytest.mark.parametrize("binding", BINDINGS)
def test_opening_and_closing_leaves_the_callers_device_current(
    monkeypatch: pytest.MonkeyPatch, binding: Binding
) -> None:
    stand_in = install(monkeypatch, binding)
    driver = stand_in.driver

    def several() -> list[int]:
        found = [driver.device()]
        for index in (1, 0, 1, 1):
            use(index, binding)
            found.append(driver.device())
        return found

    for _ in range(3):
        assert in_a_thread(several) == [0] * 5
        assert several() == [0] * 5
    if binding == "pycuda":
        assert driver.retained == {0: 1, 1: 1}  # once each, however often it was opened
    stand_in.check_end()


def test_pycuda_contexts_nest_over_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = install(monkeypatch, "pycuda").driver
    first, second = open_cuda(0, "pycuda"), open_cuda(1, "pycuda")
    driver.push_context(1)  # the caller's, made current by another library
    with first.current():
        assert driver.device() == 0
        with second.current():
            assert driver.device() == 1
        assert driver.device() == 0
    assert driver.device() == 1
    driver.pop_context()
    driver.check_end()


@pytest.mark.parametrize("way", ["dropped", "detached", "detached while pushed", "dropped in another thread"])
def test_a_context_that_pycuda_lets_go_stays_current_as_on_an_h200(way: str) -> None:
    driver = Driver()
    pycuda = make_pycuda(driver).driver
    primary = pycuda.Device(1).retain_primary_context()
    primary.push()
    if way == "detached while pushed":
        primary.detach()
    else:
        pycuda.Context.pop()
        assert driver.device() == 0
        if way == "detached":
            primary.detach()
    if way == "dropped in another thread":
        kept = [primary]
        del primary
        in_a_thread(kept.clear)
        assert driver.device() == 0
        driver.check_end()
        return
    del primary
    assert driver.device() == 1
    assert driver.retained[1] == (1 if way == "dropped" else 0)
    with pytest.raises(StandinError, match="a context is current at the end"):
        driver.check_end()


class Fake:
    """An array said to lie in a GPU's memory."""

    def __init__(self, address: int) -> None:
        data = {"data": (address, True), "typestr": "|u1", "strides": None, "stream": None}
        self.__cuda_array_interface__ = {"shape": (4, 4, 3), "version": 3, **data}


@pytest.mark.parametrize("binding", BINDINGS)
def test_host_memory_said_to_be_a_gpus_is_named(monkeypatch: pytest.MonkeyPatch, binding: Binding) -> None:
    stand_in = install(monkeypatch, binding)
    pixels = np.zeros((4, 4, 3), np.uint8)
    cuda = open_cuda(1, binding)
    intake = Intake(cuda)
    for ask in (intake.device_of, lambda address: intake.take(Fake(address))):
        with pytest.raises(CudaError, match=r"memory at 0x[0-9a-f]+ lies on the host.*give it as NumPy's array"):
            ask(pixels.ctypes.data)
    with cuda.current():
        memory, pinned = cuda.alloc(64), cuda.alloc_pinned(64)
        assert cuda.device_of(cuda.address(memory) + 5) == 1
        assert cuda.device_of(pinned.ctypes.data) == 1  # a kernel can read it
        cuda.free(memory)
        cuda.free_pinned(pinned)
    with open_cuda(0, binding).current(), pytest.raises(CudaError, match="lies on the host"):
        cuda.device_of(cuda.address(memory))  # freed
    intake.close()
    del memory, pinned
    stand_in.check_end()


def copy_by_kernel(cuda: Cuda, kernel: Any, seed: int) -> None:
    """Copy an image to its canvas by the kernel, and compare the pixels."""
    side = (8 + seed % 5, 9 + seed)
    size = side[0] * side[1] * 3
    image, canvas, pinned, stream = cuda.alloc(size), cuda.alloc(size), cuda.alloc_pinned(size), cuda.create_stream()
    sent = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    pinned[:] = sent
    cuda.copy_to_device(cuda.address(image), pinned, stream)
    given = arguments(cuda.address(image), side, cuda.address(canvas), side)
    cuda.run_kernel(kernel, grid_of(side), BLOCK, given, stream)
    cuda.synchronize_stream(stream)
    cuda.copy_to_host(pinned, cuda.address(canvas), stream)
    cuda.synchronize_stream(stream)
    np.testing.assert_array_equal(pinned, sent)
    for memory in (image, canvas):
        cuda.free(memory)
    cuda.free_pinned(pinned)
    cuda.destroy_stream(stream)


@pytest.mark.parametrize("binding", BINDINGS)
def test_threads_that_run_one_kernel_have_arguments_of_their_own(
    monkeypatch: pytest.MonkeyPatch, binding: Binding
) -> None:
    stand_in = install(monkeypatch, binding)
    cuda = open_cuda(0, binding)
    with cuda.current():
        loaded = [cuda.load_kernel(PTX.read_bytes(), KERNEL)]
    together = threading.Barrier(4)

    def work(number: int) -> None:
        together.wait(10)
        with cuda.current():
            for seed in range(number, number + 40, 4):
                copy_by_kernel(cuda, loaded[0], seed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with cuda.current():
        cuda.unload_kernel(loaded.pop())
    stand_in.check_end()


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda given: given[:-1],
        lambda given: [*given, np.int32(0)],
        lambda given: [np.int32(value) if isinstance(value, np.int64) else value for value in given],
        lambda given: [given[0], *given[2:5], given[1], *given[5:]],
    ],
    ids=["too few", "too many", "other sizes", "another order"],
)
def test_wrong_arguments_of_a_kernel_are_refused(
    monkeypatch: pytest.MonkeyPatch, binding: Binding, spoil: Callable[[list[np.generic]], list[np.generic]]
) -> None:
    install(monkeypatch, binding)
    cuda = open_cuda(0, binding)
    with cuda.current():
        memory, stream = cuda.alloc(1 << 16), cuda.create_stream()
        kernel = cuda.load_kernel(PTX.read_bytes(), KERNEL)
        good = arguments(cuda.address(memory), (4, 5), cuda.address(memory) + 1024, (4, 5))
        cuda.run_kernel(kernel, (1, 1), BLOCK, good, stream)
        with pytest.raises(StandinError, match=r"arguments of|addresses of arguments|image of a kernel"):
            cuda.run_kernel(kernel, (1, 1), BLOCK, spoil(good), stream)
        cuda.synchronize_stream(stream)
        del kernel, stream, memory
