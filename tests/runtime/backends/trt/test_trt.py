"""The TensorRT backend's whole life on the stand-in for a GPU."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError, open_backend
from runtime.backends.trt.backend import TrtBackend
from runtime.cuda import CudaError
from runtime.detections import postprocess
from runtime.detector import Detector
from runtime.stopwatch import Stopwatch

from ....support.engines import assert_same, feed, write_standin_engine
from ....support.fakes import red_image
from ....support.standin.driver import Order
from ....support.standin.install import LIBRARIES, Binding, StandIn, install
from ....support.standin.network import expected
from ....support.standin.streams import COPY_BYTES_PER_SECOND
from ....support.standin.trt_context import NETWORK_SECONDS
from ....support.trt_seams import Seams

BINDINGS = ("cuda-python", "pycuda")
SHAPES = [(1, 64, 64), (3, 64, 96), (8, 32, 32), (2, 64, 192), (4, 128, 256), (1, 96, 96)]


@pytest.mark.parametrize("names", LIBRARIES)
@pytest.mark.parametrize("binding", BINDINGS)
def test_whole_life(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding, names: str) -> None:
    stand_in = install(monkeypatch, binding, names)
    path = write_standin_engine(tmp_path, stand_in)
    for _ in range(2):  # opened again after it was closed
        with open_backend(path, binding=binding) as backend:
            assert backend.concurrency == 2
            for repeat in range(3):
                for shape in SHAPES:
                    images, sizes = feed(*shape, seed=repeat)
                    assert_same(backend.infer(images, sizes), expected(images, sizes))
                    assert_same(
                        backend.infer(images, sizes, all_candidates=True), expected(images, sizes, all_candidates=True)
                    )
        stand_in.check_end()


@pytest.mark.parametrize("cuda_graphs", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("order", ["late", pytest.param("eager", marks=pytest.mark.slow), "random"])
@pytest.mark.parametrize("names", LIBRARIES)
@pytest.mark.parametrize("binding", BINDINGS)
def test_many_batches_from_several_threads(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    binding: Binding,
    names: str,
    order: Order,
    seed: int,
    cuda_graphs: bool,
) -> None:
    stand_in = install(monkeypatch, binding, names, order, seed)
    path, seams = write_standin_engine(tmp_path, stand_in), Seams(monkeypatch, stand_in)
    feeds = [feed(*SHAPES[index % 4], seed=100 * seed + index) for index in range(24)]
    with TrtBackend(path, cuda_graphs=cuda_graphs, binding=binding, most_shapes=3) as backend:
        with ThreadPoolExecutor(4) as pool:
            given = list(pool.map(lambda each: backend.infer(*each), feeds))
        assert len(seams.network_streams) == len(seams.slots) == 2, "a slot was never used"
    for outputs, each in zip(given, feeds, strict=True):
        assert_same(outputs, expected(*each))
    stand_in.check_end()


def test_no_detections(engine: Path, stand_in: StandIn) -> None:
    with TrtBackend(engine) as backend:
        raw = backend.infer(np.zeros((2, 64, 64, 3), np.uint8), np.full((2, 2), 64, np.int32))
        assert [len(found) for found in postprocess(raw, backend.manifest.thresholds)] == [0, 0]
        assert raw.candidate_classes.tolist() == [[-1] * 4] * 2
    stand_in.check_end()


def test_a_batch_equals_singles(engine: Path, stand_in: StandIn) -> None:
    images, sizes = feed(8, 64, 64)
    with TrtBackend(engine) as backend:
        together = backend.infer(images, sizes)
        for index in range(8):
            alone = backend.infer(images[index : index + 1], sizes[index : index + 1])
            for name in vars(together):
                np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[index])
        strided = backend.infer(images[::2], sizes[::2])
        np.testing.assert_array_equal(strided.detection_boxes, together.detection_boxes[::2])
    stand_in.check_end()


def test_a_detector_on_it(engine: Path, stand_in: StandIn) -> None:
    with Detector(TrtBackend(engine, slots=1)) as detector:
        found = detector([red_image(), red_image(box=None), red_image(90, 60, (5, 6, 20, 30))])
    assert [len(each) for each in found] == [1, 0, 1]
    assert found[0].boxes[0].tolist() == pytest.approx([10, 20, 50, 40], abs=1)
    stand_in.check_end()


def test_only_the_candidates_of_inexact_images_are_copied(engine: Path, stand_in: StandIn) -> None:
    images, sizes = feed(8, 64, 64)
    inexact = int((expected(images, sizes).nms_exact == 0).sum())
    assert 0 < inexact < 8

    def copies(all_candidates: bool) -> int:
        stand_in.driver.calls.clear()
        backend.infer(images, sizes, all_candidates=all_candidates)
        return stand_in.driver.calls.count("cudaMemcpyAsync")

    with TrtBackend(engine) as backend:
        assert copies(False) == 2 + 5 + 3 * inexact
        assert copies(True) == 2 + 5 + 3
        images[..., 2] = 0
        assert copies(False) == 2 + 5


def test_times(engine: Path, stand_in: StandIn) -> None:
    images, sizes = feed(2, 64, 64)
    images[..., 2] = 0
    stopwatch = Stopwatch()
    stopwatch.add("infer", 1)
    times = stopwatch.seconds
    with TrtBackend(engine) as backend:
        for _ in range(3):  # the first run, the first launch of the graph, the second
            backend.infer(images, sizes, stopwatch=stopwatch)
        assert times["copy_in"] == pytest.approx(3 * (images.nbytes + sizes.nbytes) / COPY_BYTES_PER_SECOND)
        assert times["infer"] == pytest.approx(1 + 3 * NETWORK_SECONDS)
        without_candidates = times["copy_out"]
        backend.infer(images, sizes, stopwatch=stopwatch, all_candidates=True)
        assert times["copy_out"] > without_candidates * 4 / 3


# Graphs and prepared shapes -------------------------------------------------------------------------------------------


def launches(stand_in: StandIn) -> tuple[int, int]:
    """(runs without a graph, launches of one) since the last call; a capture counts as neither."""
    calls = stand_in.driver.calls
    counts = (
        calls.count("execute_async_v3") - calls.count("cudaStreamBeginCapture"),
        calls.count("cudaGraphLaunch"),
    )
    calls.clear()
    return counts


def test_graphs_are_captured_per_shape_after_its_first_run(engine: Path, stand_in: StandIn) -> None:
    with TrtBackend(engine, slots=1) as backend:
        assert backend.description.endswith("1 slots, CUDA graphs")
        backend.infer(*feed(8, 96, 96))
        assert launches(stand_in) == (1, 0)
        for _ in range(2):
            backend.infer(*feed(8, 96, 96))
        assert launches(stand_in) == (0, 2)
        backend.infer(*feed(3, 96, 96))
        assert launches(stand_in) == (1, 0)
        backend.infer(*feed(8, 96, 96))
        backend.infer(*feed(3, 96, 96))
        assert launches(stand_in) == (0, 2)
    stand_in.check_end()


def test_without_graphs(engine: Path, stand_in: StandIn) -> None:
    with TrtBackend(engine, cuda_graphs=False) as backend:
        assert backend.description.endswith("2 slots, no CUDA graphs")
        for _ in range(3):
            backend.infer(*feed(1, 64, 64))
    assert launches(stand_in) == (3, 0)


def test_pycuda_has_no_graphs_and_rtx_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for binding, names, own in (
        ("pycuda", "tensorrt-11.4.0", "no CUDA graphs"),
        ("pycuda", "rtx-1.7.1", "CUDA graphs"),
    ):
        stand_in = install(monkeypatch, binding, names)  # type: ignore[arg-type]
        with TrtBackend(write_standin_engine(tmp_path, stand_in), binding="pycuda") as backend:
            assert backend.description.endswith(f"Stand-in, pycuda, 2 slots, {own}")


def test_the_least_recently_used_shape_goes(engine: Path, stand_in: StandIn) -> None:
    def made() -> int:
        count = stand_in.driver.calls.count("set_optimization_profile_async")
        stand_in.driver.calls.clear()
        return count

    with TrtBackend(engine, slots=1, most_shapes=2) as backend:
        for batch in (3, 2, 3, 1, 3, 1):
            backend.infer(*feed(batch, 64, 64))
        assert made() == 3
        backend.infer(*feed(2, 64, 64))
        assert made() == 1
        contexts = [thing for thing in stand_in.shared.alive if type(thing).__name__ == "IExecutionContext"]
        assert len(contexts) == 2
        del contexts
    stand_in.check_end()


def test_a_capture_that_fails_is_told_of_and_done_without(engine: Path, stand_in: StandIn) -> None:
    with TrtBackend(engine, slots=1) as backend:
        backend.infer(*feed(1, 64, 64))
        stand_in.shared.failing_runs = 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_same(backend.infer(*feed(1, 64, 64, 1)), expected(*feed(1, 64, 64, 1)))
        assert [str(warning.message).split(":")[0] for warning in caught] == ["no CUDA graph, so launches cost more"]
        launches(stand_in)
        assert_same(backend.infer(*feed(1, 64, 64, 2)), expected(*feed(1, 64, 64, 2)))
        assert launches(stand_in) == (1, 0)
    stand_in.check_end()


# Closing --------------------------------------------------------------------------------------------------------------


def test_closed(engine: Path, stand_in: StandIn) -> None:
    backend = TrtBackend(engine)
    backend.infer(*feed(1, 64, 64))
    backend.close()
    backend.close()
    stand_in.check_end()
    with pytest.raises(BackendError, match="the backend was closed; open it again"):
        backend.infer(*feed(1, 64, 64))


@pytest.mark.parametrize("binding", BINDINGS)
def test_closing_while_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding) -> None:
    stand_in = install(monkeypatch, binding)
    backend = TrtBackend(write_standin_engine(tmp_path, stand_in), binding=binding)
    backend.infer(*feed(1, 64, 64))
    done, refused = [], []
    is_under_way = threading.Event()

    def use(seed: int) -> None:
        try:
            while True:
                each = feed(1, 64, 64, seed)
                assert_same(backend.infer(*each), expected(*each))
                done.append(seed)
                is_under_way.set()
        except BackendError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    is_under_way.wait(10)
    backend.close()
    for thread in threads:
        thread.join(10)
    assert done
    assert len(refused) == 5
    assert all("was closed" in message for message in refused)
    stand_in.check_end()


@pytest.mark.parametrize(
    ("call", "succeed"),
    [("cudaStreamCreateWithFlags", 0), ("cudaStreamCreateWithFlags", 3), ("cudaEventCreateWithFlags", 9)],
)
def test_a_failure_halfway_through_opening_frees_what_was_made(
    engine: Path, stand_in: StandIn, call: str, succeed: int
) -> None:
    stand_in.driver.failing[call] = succeed
    with pytest.raises(CudaError, match=f"{call} failed: unknown error, cudaErrorUnknown"):
        TrtBackend(engine)
    stand_in.driver.failing.clear()
    stand_in.check_end()


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaEventRecord", "cudaStreamWaitEvent", "cudaEventSynchronize"])
@pytest.mark.parametrize("succeed", range(3))
def test_a_failure_in_a_call_leaves_the_slot_usable(engine: Path, stand_in: StandIn, call: str, succeed: int) -> None:
    images, sizes = feed(2, 64, 64)
    images[0, 1, 1, 2] = 255  # a second copy of candidates, and a second wait
    with TrtBackend(engine, slots=1) as backend:
        backend.infer(images, sizes)
        stand_in.driver.failing[call] = (
            succeed % 2 if call in ("cudaStreamWaitEvent", "cudaEventSynchronize") else succeed
        )
        with pytest.raises(CudaError, match=f"{call} failed"):
            backend.infer(images ^ 1, sizes)
        stand_in.driver.failing.clear()
        assert_same(backend.infer(images, sizes), expected(images, sizes))
    stand_in.check_end()


def test_a_run_that_fails(engine: Path, stand_in: StandIn) -> None:
    with TrtBackend(engine, slots=1, cuda_graphs=False) as backend:
        stand_in.shared.failing_runs = 1
        with pytest.raises(
            BackendError, match=r"could not run images \[1, 64, 64, 3\]: Error Code 2: .* \(told to fail\)$"
        ):
            backend.infer(*feed(1, 64, 64))
        assert_same(backend.infer(*feed(1, 64, 64)), expected(*feed(1, 64, 64)))
    stand_in.check_end()
