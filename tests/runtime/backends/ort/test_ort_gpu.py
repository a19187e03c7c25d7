"""ONNX Runtime's GPU providers, on the strict stand-in of `ort_fake`: options, binding, failures."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="the backend under test")

from runtime.backends import Backend, BackendError, BatchTooLarge, open_backend
from runtime.backends.ort import libraries as ort_libraries
from runtime.backends.ort.backend import OrtBackend
from runtime.detect import main as detect
from runtime.detections import RawOutputs
from runtime.manifest import InputShapes
from runtime.stopwatch import Stopwatch

from ....support.fakes import manifest_with, red_image, write_red_onnx
from ....support.ort_fake import CUDA, RTX, TENSORRT, FakeBinding, FakeOrt

INPUTS = InputShapes(1, 16, 64, 512, 64, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_red_onnx(tmp_path_factory.mktemp("onnx") / "red.onnx", manifest_with(inputs=INPUTS))


def use(monkeypatch: pytest.MonkeyPatch, module: FakeOrt) -> FakeOrt:
    monkeypatch.setitem(sys.modules, "onnxruntime", module)  # type: ignore[arg-type]
    monkeypatch.setattr(ort_libraries, "is_loadable", lambda name: name not in module.missing)
    return module


def canvases(count: int, height: int = 64, first: int = 10) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((count, height, 96, 3), np.uint8)
    for index in range(count):
        images[index, :60, :80] = red_image(box=(first + index, 20, 50, 40))
    return images, np.full((count, 2), (60, 80), np.int32)


def same(a: RawOutputs, b: RawOutputs, names: tuple[str, ...]) -> None:
    for name in names:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


DETECTIONS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes", "nms_exact")
ALL = tuple(field.name for field in dataclasses.fields(RawOutputs))


@pytest.mark.parametrize("name", ["cuda", "ort-tensorrt"])
def test_bound_runs_equal_plain_ones(model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plain = OrtBackend(model)
    fake = use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend=name)
    assert backend.concurrency == 2
    assert backend.description.startswith("ONNX Runtime 1.99, ")
    assert "GPU 0, 2 operators on the CPU" in backend.description
    stopwatch = Stopwatch()
    for count, height in ((1, 64), (3, 64), (3, 128), (1, 64), (16, 64)):
        feed = canvases(count, height)
        expected, given = plain.infer(*feed), backend.infer(*feed, stopwatch=stopwatch)
        same(given, expected, DETECTIONS)
        assert (given.candidate_scores == 0).all(), "every image is exact: candidates are left out"
        assert (given.candidate_classes == -1).all()
        assert given.candidate_boxes.shape == expected.candidate_boxes.shape
        same(backend.infer(*feed, all_candidates=True), expected, ALL)
    assert set(stopwatch.seconds) == {"copy_in", "infer", "copy_out"}
    assert all(value > 0 for value in stopwatch.seconds.values())
    assert fake.copied_out > 0


def test_a_batch_equals_singles_and_results_are_the_callers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")
    images, sizes = canvases(5)
    together = backend.infer(images, sizes, all_candidates=True)
    kept = dataclasses.replace(together, **{name: getattr(together, name).copy() for name in ALL})
    for index in range(5):
        alone = backend.infer(images[index : index + 1], sizes[index : index + 1], all_candidates=True)
        for name in ALL:
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[index])
    same(together, kept, ALL)


def test_a_later_call_does_not_change_an_earlier_result(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")
    results = [backend.infer(*canvases(1, first=first)) for first in range(10, 16)]
    assert [raw.detection_boxes[0, 0, 0] for raw in results] == list(range(10, 16))


def test_candidates_cross_only_where_they_may_be_needed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")
    feed = canvases(4)
    backend.infer(*feed)
    detections_only = fake.copied_out
    backend.infer(*feed, all_candidates=True)
    assert fake.copied_out == 2 * detections_only + 4 * (4 * 4 + 4 + 4)
    real = fake.sessions[-1].run

    def inexact(names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = dict(zip(names, real(names, given), strict=True))
        found["nms_exact"] = np.array([[1], [0], [1], [1]], np.int32)
        return [found[name] for name in names]

    monkeypatch.setattr(fake.sessions[-1], "run", inexact)
    raw = backend.infer(*feed)
    assert raw.candidate_scores[1, 0] == np.float32(0.9)
    assert raw.nms_exact.tolist() == [[1], [0], [1], [1]]


def test_device_memory_is_taken_once_per_shape(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")
    for _ in range(6):
        backend.infer(*canvases(2))
    assert fake.allocated == 2 * 2, "two inputs in each of the two slots"
    for _ in range(2):
        backend.infer(*canvases(3))
    assert fake.allocated == 2 * 2 * 2


def test_several_threads(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")

    def check(number: int) -> bool:
        first = number % 20
        raw = backend.infer(*canvases(1 + number % 4, first=first))
        return raw.detection_boxes[:, 0, 0].tolist() == [first + i for i in range(1 + number % 4)]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(check, range(200)))
    assert fake.sessions[-1].most_running <= 2


def test_options_of_the_providers(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = use(monkeypatch, FakeOrt(devices=3))
    open_backend(model, backend="cuda", device=2)
    (name, options), (last, _) = fake.asked[-1]
    assert (name, last) == (CUDA, "CPUExecutionProvider")
    assert options["device_id"] == "2"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    open_backend(model, backend="ort-tensorrt", device=1, engine_cache=tmp_path / "engines")
    (name, options), (second, cuda), (last, _) = fake.asked[-1]
    assert (name, second, last) == (TENSORRT, CUDA, "CPUExecutionProvider")
    assert cuda["device_id"] == options["device_id"] == "1"
    assert options["trt_profile_min_shapes"] == "images:1x64x64x3,image_sizes:1x2"
    assert options["trt_profile_opt_shapes"] == "images:8x64x96x3,image_sizes:8x2"
    assert options["trt_profile_max_shapes"] == "images:16x512x512x3,image_sizes:16x2"
    assert options["trt_engine_cache_path"] == str(tmp_path / "engines")
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("0", "0")
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700


def test_engines_are_not_kept_where_others_may_write(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, FakeOrt())
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(BackendError, match=r"shared: others may write there.*chmod go-w"):
        open_backend(model, backend="ort-tensorrt", engine_cache=shared)
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match=r"--engine-cache .*file: "):
        open_backend(model, backend="ort-tensorrt", engine_cache=tmp_path / "file")


def test_precisions_that_tensorrt_may_not_keep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, FakeOrt())
    for precision in ("fp16", "int8"):
        path = write_red_onnx(tmp_path / "x.onnx", manifest_with(precision=precision))
        with pytest.raises(BackendError, match=rf"a {precision} graph, whose types .* may not keep; build an engine"):
            open_backend(path, backend="ort-tensorrt")
        open_backend(path, backend="cuda")


def test_a_provider_that_is_not_there(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt(available=("CPUExecutionProvider",)))
    with pytest.raises(
        BackendError, match=r"has no CUDAExecutionProvider, only CPUExecutionProvider; install onnxruntime-gpu"
    ):
        open_backend(model, backend="cuda")


def test_a_provider_that_does_not_start(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt(broken=(CUDA,)))
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider did not start .*driver is insufficient.*--backend"):
        open_backend(model, backend="cuda")


def test_a_provider_that_silently_did_not_start(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime-gpu does without a driver: the provider is on the list, the session runs on the CPU."""
    use(monkeypatch, FakeOrt(broken=(CUDA,), silent=True))
    with pytest.raises(
        BackendError, match="could not start CUDAExecutionProvider and fell back to CPUExecutionProvider"
    ):
        open_backend(model, backend="cuda")
    backend = open_backend(model, backend="cuda", allow_fallback=True)
    assert "CPUExecutionProvider" in backend.description
    assert "GPU" not in backend.description
    assert backend.infer(*canvases(2)).num_detections.tolist() == [[1], [1]]


def test_part_of_the_network_on_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt(left=("Shape", "Conv", "Conv", "GridSample")))
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider leaves 2 Conv, 1 GridSample to the CPU"):
        open_backend(model, backend="cuda")
    assert "4 operators on the CPU" in open_backend(model, backend="cuda", allow_fallback=True).description


def test_a_gpu_that_does_not_exist(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt(devices=1))
    for name in ("cuda", "ort-tensorrt"):
        with pytest.raises(BackendError, match=r"--device 7: .* cannot use that GPU .*invalid device.*nvidia-smi -L"):
            open_backend(model, backend=name, device=7)


def test_out_of_memory_names_a_batch_that_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")
    fake.most_images = 5
    with pytest.raises(BackendError) as caught:
        backend.infer(*canvases(16))
    assert "failed on images [16, 64, 96, 3]" in str(caught.value)
    assert isinstance(caught.value, BatchTooLarge)
    assert caught.value.fits == 4
    assert "a batch of 4 fits: use --batch 4" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert backend.infer(*canvases(4)).num_detections.tolist() == [[1]] * 4, "the backend is as good as new"
    fake.most_images = 0
    with pytest.raises(BackendError, match="no batch of this canvas fits: use a smaller canvas"):
        backend.infer(*canvases(16))


def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module: ModuleType = SimpleNamespace(get_library_path=lambda: "/plugin.so")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)


def test_tensorrt_for_rtx_is_a_plugin(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = use(monkeypatch, FakeOrt(available=("CPUExecutionProvider",), devices=2))
    plugin(monkeypatch)
    for device in (1, 0):  # the second time it is registered already
        backend = open_backend(model, backend="ort-rtx", device=device, engine_cache=tmp_path / "cache")
    (name, options), *_ = fake.asked[-1]
    assert name == RTX
    assert options["nv_profile_max_shapes"] == "images:16x512x512x3,image_sizes:16x2"
    assert options["nv_runtime_cache_path"] == str(tmp_path / "cache")
    assert fake.registered == [RTX]
    assert backend.infer(*canvases(2)).num_detections.tolist() == [[1], [1]]
    with pytest.raises(BackendError, match=r"--device 2: .* sees 2 GPUs"):
        open_backend(model, backend="ort-rtx", device=2)


def test_tensorrt_for_rtx_without_plugin_or_driver(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt(broken=(RTX,)))
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(BackendError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        open_backend(model, backend="ort-rtx")
    plugin(monkeypatch)
    with pytest.raises(BackendError, match=r"did not start \(libcuda.so.1: .*RTX GPU and its driver"):
        open_backend(model, backend="ort-rtx")


def test_auto_takes_the_gpu_where_it_starts(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeOrt())
    backend: Backend = open_backend(model)
    assert "CUDAExecutionProvider" in backend.description
    assert backend.description.endswith("(best that starts)")
    use(monkeypatch, FakeOrt(broken=(CUDA,), silent=True))
    description = open_backend(model).description
    assert description.startswith(("OpenVINO ", "ONNX Runtime 1.99, CPUExecutionProvider"))  # whichever is faster
    assert "cuda: ONNX Runtime could not start CUDAExecutionProvider" in description


def test_detecting_goes_on_with_the_batch_that_fits(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fake = use(monkeypatch, FakeOrt())
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), red_image(60, 80, (10, 20, 50 - number, 40))[..., ::-1])
    rows = []
    for most in (None, 3):
        fake.most_images = most
        out = tmp_path / f"out {most}"
        assert detect([str(model), str(tmp_path), "-o", str(out), "--backend", "cuda", "--json-only"]) == 0
        content = json.loads((out / "detections.json").read_text(encoding="utf-8"))
        assert content["complete"] is True
        rows.append(content["images"])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6


def test_closing_twice_at_once_waits_for_running_calls_and_refuses_waiting_ones(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeOrt())
    backend = open_backend(model, backend="cuda")
    both, goes_on = threading.Barrier(3), threading.Event()
    real = FakeBinding.run

    def slow(self: FakeBinding) -> None:
        both.wait(20)
        assert goes_on.wait(20)
        real(self)

    monkeypatch.setattr(FakeBinding, "run", slow)
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(backend.infer, *canvases(1)) for _ in range(2)]
        both.wait(20)
        waiting = pool.submit(backend.infer, *canvases(1))
        time.sleep(0.05)
        closing = [threading.Thread(target=backend.close, daemon=True) for _ in range(2)]
        for thread in closing:
            thread.start()
        time.sleep(0.05)
        assert any(thread.is_alive() for thread in closing), "calls are running"
        goes_on.set()
        for thread in closing:
            thread.join(20)
            assert not thread.is_alive()
        assert [len(one.result(20).num_detections) for one in running] == [1, 1]
        with pytest.raises(BackendError, match="was closed"):
            waiting.result(20)
    with pytest.raises(BackendError, match=r"red\.onnx: the backend was closed"):
        backend.intake()  # type: ignore[attr-defined]
