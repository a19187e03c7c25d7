"""The seam over CUDA on a real GPU, through each binding that is installed."""

from __future__ import annotations

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from runtime.cuda import Binding, Cuda, CudaError, OutOfMemory, open_cuda
from runtime.cuda.pycuda_driver import driver_library

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda-python", "pycuda"])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    binding: Binding = request.param
    if importlib.util.find_spec("cuda" if binding == "cuda-python" else "pycuda") is None:
        pytest.skip(f"{binding} is not installed")
    try:
        return open_cuda(0, binding)
    except CudaError as error:
        pytest.skip(str(error))


def test_a_copy_there_and_back_over_two_streams(cuda: Cuda) -> None:
    size = 64 << 20
    with cuda.current():
        before = cuda.free_bytes()
        memory, sent, got = cuda.alloc(size), cuda.alloc_pinned(size), cuda.alloc_pinned(size)
        assert before - cuda.free_bytes() >= size // 2
        up, down = cuda.create_stream(), cuda.create_stream()
        start, copied, done = cuda.create_event(), cuda.create_event(), cuda.create_event()
        sent[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        got.fill(0)
        cuda.record(start, up)
        cuda.copy_to_device(cuda.address(memory), sent, up)
        cuda.record(copied, up)
        cuda.wait(down, copied)
        cuda.copy_to_host(got, cuda.address(memory), down)
        cuda.record(done, down)
        cuda.synchronize_event(done)
        np.testing.assert_array_equal(got, sent)
        assert 0 < cuda.seconds_between(start, copied) < cuda.seconds_between(start, done) < 10
        for stream in (up, down):
            cuda.synchronize_stream(stream)
            cuda.destroy_stream(stream)
        for event in (start, copied, done):
            cuda.destroy_event(event)
        cuda.free(memory)
        cuda.free_pinned(sent)
        cuda.free_pinned(got)
        del up, down, stream, start, copied, done, event  # pycuda's go while the device is current
    cuda.close()


def test_out_of_memory_is_named_and_leaves_the_device_usable(cuda: Cuda) -> None:
    with cuda.current():
        with pytest.raises(OutOfMemory, match="CUDA device 0 is out of memory"):
            cuda.alloc(cuda.device.memory_bytes * 2)
        cuda.free(cuda.alloc(1 << 20))
    cuda.close()


def test_a_device_that_does_not_exist(cuda: Cuda) -> None:
    with pytest.raises(CudaError, match="CUDA device 99 does not exist; this machine has"):
        open_cuda(99, cuda.binding)
    assert cuda.device.compute_capability.count(".") == 1
    assert cuda.device.clock_mhz > 100
    cuda.close()


def current_context() -> int | None:
    """The driver's handle of the context that is current in this thread."""
    context = ctypes.c_void_p()
    assert driver_library().cuCtxGetCurrent(ctypes.byref(context)) == 0
    return context.value


def primary_context() -> int | None:
    """The handle of device 0's primary context, retained once more."""
    library, device, context = driver_library(), ctypes.c_int(), ctypes.c_void_p()
    assert library.cuInit(0) == library.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    return context.value


def use(binding: Binding) -> None:
    """Open the device, use it, inside itself too, and close it."""
    cuda = open_cuda(0, binding)
    with cuda.current(), cuda.current():
        cuda.free(cuda.alloc(1 << 20))
    cuda.close()


def test_the_callers_context_stays_current_and_none_piles_up(cuda: Cuda) -> None:
    cuda.close()
    primary = primary_context()

    def with_a_context_of_the_caller() -> None:
        library, popped = driver_library(), ctypes.c_void_p()
        assert library.cuCtxPushCurrent_v2(ctypes.c_void_p(primary)) == 0
        for _ in range(20):
            use(cuda.binding)
            assert current_context() == primary
        assert library.cuCtxPopCurrent_v2(ctypes.byref(popped)) == 0
        assert popped.value == primary
        assert current_context() is None  # nothing lies below the caller's own

    def with_none() -> None:
        for _ in range(20):
            use(cuda.binding)
            # The runtime API, which cuda-python calls, leaves a device current in every thread that used it.
            assert current_context() == (None if cuda.binding == "pycuda" else primary)

    for work in (with_a_context_of_the_caller, with_none):
        with ThreadPoolExecutor(1) as pool:  # a thread in which no context is current
            pool.submit(work).result()


def test_the_device_of_memory(cuda: Cuda) -> None:
    array = np.zeros(1 << 16, np.uint8)
    with cuda.current():
        memory, pinned = cuda.alloc(1 << 16), cuda.alloc_pinned(1 << 16)
        assert cuda.device_of(cuda.address(memory) + 100) == 0
        assert cuda.device_of(pinned.ctypes.data) == 0  # a kernel can read it
        with pytest.raises(CudaError, match="lies on the host"):
            cuda.device_of(array.ctypes.data)
        cuda.free(memory)
        cuda.free_pinned(pinned)
    cuda.close()
