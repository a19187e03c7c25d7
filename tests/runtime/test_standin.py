"""The stand-in's own rules, each broken directly: the whole life of a backend breaks only some of them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

import cuda.bindings.runtime as cudart

from ..support.engines import feed
from ..support.standin import network
from ..support.standin.cudart import make_cudart
from ..support.standin.driver import POISON, Driver
from ..support.standin.parts import StandinError
from ..support.standin.trt import NAMES, make_tensorrt
from ..support.standin.trt_engine import engine_bytes

ORDERS = ("late", "eager", "random")
TO_DEVICE, TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
GLOBAL = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
THREAD_LOCAL = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


class Hands:
    """The fake CUDA in short words: each call returns its result alone."""

    def __init__(self, order: Any = "late") -> None:
        self.driver = Driver(order)
        self.cuda = make_cudart(self.driver)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            error, *results = getattr(self.cuda, f"cuda{name}")(*arguments)
            assert error == cudart.cudaError_t.cudaSuccess
            return results[0] if results else None

        return call

    def stream(self) -> Any:
        return self.StreamCreateWithFlags(cudart.cudaStreamNonBlocking)

    def event(self) -> Any:
        return self.EventCreateWithFlags(0)

    def pinned(self, size: int) -> tuple[int, np.ndarray]:
        address = self.HostAlloc(size, 0)
        return address, self.driver.allocations[address].data


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_there_and_back(order: str) -> None:
    hands = Hands(order)
    device, stream = hands.Malloc(64), hands.stream()
    source, sent = hands.pinned(64)
    target, got = hands.pinned(64)
    sent[:] = np.arange(64)
    hands.MemcpyAsync(device, source, 64, TO_DEVICE, stream)
    hands.MemcpyAsync(target, device, 64, TO_HOST, stream)
    assert (got == POISON).all()  # whatever the order: nobody has waited
    hands.StreamSynchronize(stream)
    np.testing.assert_array_equal(got, np.arange(64))
    for free, handle in ((hands.Free, device), (hands.FreeHost, source), (hands.FreeHost, target)):
        free(handle)
    hands.StreamDestroy(stream)
    hands.driver.check_end()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("is_ordered", [True, False])
def test_two_streams_on_one_buffer(order: str, is_ordered: bool) -> None:
    hands = Hands(order)
    device, one, two, event = hands.Malloc(64), hands.stream(), hands.stream(), hands.event()
    source, sent = hands.pinned(64)
    target, got = hands.pinned(64)
    sent[:] = 7
    hands.MemcpyAsync(device, source, 64, TO_DEVICE, one)
    hands.EventRecord(event, one)
    if not is_ordered:
        with pytest.raises(
            StandinError, match=r"race: copy of 64 bytes to the host doesn't wait for copy of 64 bytes to"
        ):
            hands.MemcpyAsync(target, device, 64, TO_HOST, two)
        return
    hands.StreamWaitEvent(two, event, 0)
    hands.MemcpyAsync(target, device, 64, TO_HOST, two)
    hands.StreamSynchronize(two)
    assert (got == 7).all()


def test_late_work_runs_late_and_in_another_order() -> None:
    """Two streams, nothing shared: the stream that was filled last may run first."""
    firsts = set()
    for seed in range(40):
        driver = Driver("random", seed)
        hands = Hands()
        hands.driver, hands.cuda = driver, make_cudart(driver)
        one, two = hands.stream(), hands.stream()
        source, _ = hands.pinned(64)
        hands.MemcpyAsync(hands.Malloc(64), source, 64, TO_DEVICE, one)
        hands.MemcpyAsync(hands.Malloc(64), source, 64, TO_DEVICE, two)
        for _ in range(2):
            hands.event()  # any call may let something run
        queued = driver.unpublished
        firsts.add(tuple(operation.ends is not None for operation in queued))
    assert {(False, False), (True, False), (False, True)} <= firsts


def _breaks() -> dict[str, tuple[Any, str]]:
    """Name → what to do with Hands, what is said of it."""

    def freed_in_flight(h: Hands) -> None:
        device, (source, _) = h.Malloc(64), h.pinned(64)
        h.MemcpyAsync(device, source, 64, TO_DEVICE, h.stream())
        h.Free(device)

    def used_after_free(h: Hands) -> None:
        device, (source, _) = h.Malloc(64), h.pinned(64)
        h.Free(device)
        h.MemcpyAsync(device, source, 64, TO_DEVICE, h.stream())

    def host_written_after_free(h: Hands) -> None:
        source, data = h.pinned(64)
        h.FreeHost(source)
        data[3] = 1
        h.driver.check_end()

    def beyond_the_buffer(h: Hands) -> None:
        h.MemcpyAsync(h.Malloc(64), h.pinned(128)[0], 128, TO_DEVICE, h.stream())

    def pageable(h: Hands) -> None:
        h.MemcpyAsync(h.Malloc(64), np.zeros(64, np.uint8).ctypes.data, 64, TO_DEVICE, h.stream())

    def default_stream(h: Hands) -> None:
        h.MemcpyAsync(h.Malloc(64), h.pinned(64)[0], 64, TO_DEVICE, 0)

    def stream_destroyed_in_flight(h: Hands) -> None:
        stream = h.stream()
        h.MemcpyAsync(h.Malloc(64), h.pinned(64)[0], 64, TO_DEVICE, stream)
        h.StreamDestroy(stream)

    def stream_used_after_destroy(h: Hands) -> None:
        stream = h.stream()
        h.StreamDestroy(stream)
        h.StreamSynchronize(stream)

    def other_device(h: Hands) -> None:
        device = h.Malloc(64)
        h.SetDevice(1)
        h.MemcpyAsync(device, h.pinned(64)[0], 64, TO_DEVICE, h.stream())

    def unrecorded(h: Hands) -> None:
        h.StreamWaitEvent(h.stream(), h.event(), 0)

    def early_time(h: Hands) -> None:
        stream, event = h.stream(), h.event()
        h.EventRecord(event, stream)
        h.EventElapsedTime(event, event)

    def event_in_capture(h: Hands) -> None:
        stream = h.stream()
        h.StreamBeginCapture(stream, THREAD_LOCAL)
        h.EventRecord(h.event(), stream)

    def captured_in_another_thread(h: Hands) -> None:
        stream = h.stream()
        h.StreamBeginCapture(stream, THREAD_LOCAL)
        _in_thread(lambda: h.StreamEndCapture(stream))

    def malloc_beside_a_global_capture(h: Hands) -> None:
        h.StreamBeginCapture(h.stream(), GLOBAL)
        _in_thread(lambda: h.Malloc(64))

    def leak(h: Hands) -> None:
        h.event()
        h.driver.check_end()

    return {
        "freed in flight": (freed_in_flight, "device memory is freed while copy of 64 bytes to the device may use it"),
        "used after free": (used_after_free, "memory that was freed"),
        "host memory written after free": (host_written_after_free, "memory was written after it was freed"),
        "beyond the buffer": (beyond_the_buffer, "128 bytes at 0 of a buffer of 64"),
        "pageable": (pageable, "pageable host memory"),
        "default stream": (default_stream, "work on the default stream"),
        "stream destroyed in flight": (stream_destroyed_in_flight, "a stream is destroyed while"),
        "stream used after destroy": (stream_used_after_destroy, "a stream that doesn't exist"),
        "other device": (other_device, "belongs to device 0, but 1 is current"),
        "unrecorded event": (unrecorded, "never recorded"),
        "early time": (early_time, "the time of an event that wasn't waited for"),
        "event in a capture": (event_in_capture, "an event is recorded on a stream that captures"),
        "capture ended in another thread": (captured_in_another_thread, "in another thread"),
        "malloc beside a global capture": (malloc_beside_a_global_capture, "cudaMalloc while a graph is captured"),
        "leak": (leak, "not freed at the end: event"),
    }


def _in_thread(function: Any) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except StandinError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("name", _breaks())
@pytest.mark.parametrize("order", ORDERS)
def test_a_broken_rule(name: str, order: str) -> None:
    act, message = _breaks()[name]
    hands = Hands(order)
    with pytest.raises(StandinError, match=message):
        act(hands)
    assert hands.driver.violations


def test_another_threads_allocation_beside_a_thread_local_capture() -> None:
    hands = Hands()
    hands.StreamBeginCapture(hands.stream(), THREAD_LOCAL)
    _in_thread(lambda: hands.Malloc(64))
    assert hands.driver.violations == []


@pytest.fixture
def context() -> tuple[Any, Hands]:
    """A context that is ready to run on (1, 64, 64)."""
    hands = Hands()
    trt, _ = make_tensorrt(hands.driver, "tensorrt-11.4.0")

    class Logger(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            raise AssertionError(message)

    engine = trt.Runtime(Logger()).deserialize_cuda_engine(engine_bytes([[(1, 32, 32), (2, 64, 64), (4, 64, 64)]]))
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context.set_input_shape("images", (1, 64, 64, 3))
    context.set_input_shape("image_sizes", (1, 2))
    size = context.update_device_memory_size_for_shapes()
    context.set_device_memory(hands.Malloc(size), size)
    for name, dtype in (network.INPUTS | network.OUTPUTS).items():
        nbytes = int(np.prod(context.get_tensor_shape(name))) * np.dtype(dtype).itemsize
        context.set_tensor_address(name, hands.Malloc(nbytes))
    return context, hands


def test_one_context_on_two_streams(context: tuple[Any, Hands]) -> None:
    execution, hands = context
    assert execution.execute_async_v3(int(hands.stream()))
    with pytest.raises(StandinError, match="race: the network doesn't wait for the network"):
        execution.execute_async_v3(int(hands.stream()))


def test_a_capture_of_a_context_whose_run_was_not_waited_for(context: tuple[Any, Hands]) -> None:
    execution, hands = context
    stream = hands.stream()
    execution.execute_async_v3(int(stream))
    hands.StreamBeginCapture(stream, THREAD_LOCAL)
    with pytest.raises(AssertionError, match="not permitted when stream is capturing"):
        execution.execute_async_v3(int(stream))


def test_one_context_in_two_threads(context: tuple[Any, Hands]) -> None:
    execution, hands = context
    stream = int(hands.stream())
    hands.driver.pause("execute_async_v3")
    thread = threading.Thread(target=execution.execute_async_v3, args=(stream,))
    thread.start()
    assert hands.driver.has_paused.wait(10)
    with pytest.raises(StandinError, match="two threads at once"):
        execution.infer_shapes()
    hands.driver.may_go_on.set()
    thread.join()


@pytest.mark.parametrize("names", NAMES)
def test_the_library_has_its_versions_names_and_no_other(names: str) -> None:
    trt, _ = make_tensorrt(Driver(), names)
    is_rtx = names.startswith("rtx")
    assert hasattr(trt, "CudaGraphStrategy") == is_rtx
    assert hasattr(trt.IRuntimeConfig, "create_runtime_cache") == is_rtx
    assert hasattr(trt.ICudaEngine, "device_memory_size") == (names == "tensorrt-10.16.1")
    assert not hasattr(trt.IExecutionContext, "enqueue_v2")
    with pytest.raises(NotImplementedError, match=r"doesn't do IExecutionContext.profiler"):
        _ = trt.IExecutionContext.__new__(trt.IExecutionContext).profiler


def test_the_network_finds_what_was_drawn() -> None:
    """The reference itself: an empty image, and the rectangle of one that isn't."""
    empty = network.run(np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 2), 64, np.int32))
    assert empty["num_detections"].tolist() == [[0]]
    assert empty["nms_exact"].tolist() == [[1]]
    images, sizes = feed(8, 64, 64)
    outputs = network.run(images, sizes)
    assert 0 < outputs["nms_exact"].sum() < 8
    assert (outputs["num_detections"] > 0).any()
