from __future__ import annotations

import builtins
import contextlib
import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("openvino", reason="the backend under test")

from runtime.backends import BackendError, open_backend
from runtime.backends import openvino_backend as ov
from runtime.backends.openvino_backend import OpenVinoBackend, shared_core
from runtime.backends.options import BackendOptions
from runtime.detections import RawOutputs
from runtime.manifest import ManifestError
from runtime.stopwatch import Stopwatch

from ...support.fakes import MANIFEST, ROWS, red_image, write_red_onnx

ALL = tuple(field.name for field in dataclasses.fields(RawOutputs))


@pytest.fixture(scope="module")
def backend(model: Path) -> OpenVinoBackend:
    return OpenVinoBackend(model, BackendOptions(backend="openvino", threads=1))


def canvases(count: int, height: int = 64, width: int = 96, first: int = 10) -> tuple[np.ndarray, np.ndarray]:
    images = np.zeros((count, height, width, 3), np.uint8)
    for index in range(count):
        images[index, :60, :80] = red_image(box=(first + index, 20, 50, 40) if index != 1 else None)
    return images, np.full((count, 2), (60, 80), np.int32)


def test_runs_the_contract(backend: OpenVinoBackend) -> None:
    stopwatch = Stopwatch()
    raw = backend.infer(*canvases(3), stopwatch=stopwatch)
    assert backend.manifest == MANIFEST
    assert backend.description.startswith("OpenVINO ")
    assert ", f32, 1 threads" in backend.description
    assert backend.concurrency == 1
    assert raw.num_detections.tolist() == [[1], [0], [1]]
    assert raw.detection_boxes[:, 0].tolist() == [[10, 20, 50, 40], [0, 0, 0, 0], [12, 20, 50, 40]]
    assert raw.detection_classes.tolist() == [[0, -1, -1], [-1, -1, -1], [0, -1, -1]]
    assert raw.detection_scores.shape == (3, ROWS)
    assert list(stopwatch.seconds) == ["infer"]
    assert stopwatch.seconds["infer"] > 0


def test_candidates_are_left_out_unless_asked_for(backend: OpenVinoBackend) -> None:
    raw = backend.infer(*canvases(3))
    assert (raw.nms_exact == 1).all()
    assert (raw.candidate_scores == 0).all()
    assert (raw.candidate_classes == -1).all()
    assert backend.infer(*canvases(3), all_candidates=True).candidate_scores[0, 0] == np.float32(0.9)


def test_every_output_is_onnx_runtimes_at_several_shapes(model: Path, backend: OpenVinoBackend) -> None:
    pytest.importorskip("onnxruntime", reason="the reference")
    reference = open_backend(model, backend="cpu")
    for count, height, width in ((1, 64, 96), (4, 64, 96), (3, 128, 160), (1, 64, 96)):
        expected = reference.infer(*canvases(count, height, width))
        given = backend.infer(*canvases(count, height, width), all_candidates=True)
        for name in ALL:
            np.testing.assert_array_equal(getattr(given, name), getattr(expected, name), err_msg=name)
            assert getattr(given, name).dtype == getattr(expected, name).dtype


def test_a_batch_equals_singles_and_the_outputs_are_the_callers(backend: OpenVinoBackend) -> None:
    images, sizes = canvases(4)
    together = backend.infer(images, sizes, all_candidates=True)
    kept = {name: getattr(together, name).copy() for name in ALL}
    for index in range(4):
        alone = backend.infer(images[index : index + 1], sizes[index : index + 1], all_candidates=True)
        for name in ALL:
            np.testing.assert_array_equal(getattr(alone, name)[0], kept[name][index])
    for name in ALL:
        np.testing.assert_array_equal(getattr(together, name), kept[name])


def test_a_later_call_does_not_change_an_earlier_result(backend: OpenVinoBackend) -> None:
    results = [backend.infer(*canvases(1, first=first)) for first in range(10, 16)]
    assert [raw.detection_boxes[0, 0, 0] for raw in results] == list(range(10, 16))


def test_a_strided_feed_is_taken(backend: OpenVinoBackend) -> None:
    images, sizes = canvases(4)
    assert backend.infer(images[::2], sizes[::2]).detection_boxes[1, 0].tolist() == [12, 20, 50, 40]


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_several_threads(model: Path, hint: str) -> None:
    backend = open_backend(model, backend="openvino", hint=hint, threads=2)
    assert backend.concurrency == 1 or (hint == "throughput" and "batches at once" in backend.description)

    def check(number: int) -> bool:
        first = number % 20
        raw = backend.infer(*canvases(1 + number % 4, first=first))
        expected = [first + i if i != 1 else 0 for i in range(1 + number % 4)]
        return raw.detection_boxes[:, 0, 0].tolist() == expected

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(check, range(200)))


def test_the_feed_is_checked(backend: OpenVinoBackend) -> None:
    with pytest.raises(BackendError, match="batch 17"):
        backend.infer(np.zeros((17, 32, 32, 3), np.uint8), np.full((17, 2), 32, np.int32))
    with pytest.raises(BackendError, match="image_sizes is int64"):
        backend.infer(np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 2), 32))


def test_a_closed_backend(model: Path) -> None:
    closed = OpenVinoBackend(model)
    closed.close()
    closed.close()
    with pytest.raises(BackendError, match="was closed"):
        closed.infer(*canvases(1))


def test_files_that_are_not_ours(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture) -> None:
    data = model.read_bytes()
    cases = {
        "empty.onnx": (b"", "the file is empty; export a checkpoint with: python -m export.to_onnx"),
        "text.onnx": (b"hello world, I am no model", "OpenVINO cannot open it"),
        "cut.onnx": (data[: len(data) // 2], "OpenVINO cannot open it"),
        "cut_late.onnx": (data[:-5], "OpenVINO cannot open it|no manifest|not JSON"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((BackendError, ManifestError), match=message) as caught:
            OpenVinoBackend(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    with pytest.raises(BackendError, match=r"not one that this toolkit exported \(no manifest\)"):
        OpenVinoBackend(write_red_onnx(tmp_path / "foreign.onnx", manifest=None))
    with pytest.raises(BackendError, match="output 'nms_exact' is missing, expected int32 of rank 2"):
        OpenVinoBackend(write_red_onnx(tmp_path / "less.onnx", drop="nms_exact"))
    with pytest.raises(BackendError, match="cannot read the model: No such file or directory"):
        OpenVinoBackend(tmp_path / "missing.onnx")


def test_another_version_of_the_manifest(tmp_path: Path, model: Path) -> None:
    import onnx

    proto = onnx.load(str(model))
    proto.metadata_props[0].value = proto.metadata_props[0].value.replace('"version": 1', '"version": 2')
    onnx.save(proto, str(tmp_path / "x.onnx"))
    with pytest.raises(ManifestError, match=r"manifest version 2, this toolkit .* reads version 1; export"):
        OpenVinoBackend(tmp_path / "x.onnx")


def test_bfloat16_only_where_the_cpu_has_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    if "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert ", bf16, " in open_backend(model, backend="openvino", precision_hint="bf16").description
    monkeypatch.setattr(ov, "shared_core", Old)
    with pytest.raises(BackendError, match=r"--precision-hint bf16: this CPU has no bfloat16 \(it has FP32, INT8\)"):
        open_backend(model, backend="openvino", precision_hint="bf16")


@pytest.mark.parametrize(
    ("limit", "seen"), [("", ""), ("AVX2", None), ("avx2", None), ("SSE41", None), ("AVX512_CORE", "AVX512_CORE")]
)
def test_a_limit_below_avx512_is_hidden_while_the_processor_is_read(
    limit: str, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own kernels don't know it, and end the process where oneDNN's beside them do."""

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            found.append(os.environ.get("ONEDNN_MAX_CPU_ISA"))
            if limit == "SSE41":
                raise RuntimeError("nothing to be read")
            return ["FP32"]

    found: list[str | None] = []
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    with contextlib.suppress(RuntimeError):
        ov.read_capabilities(Core())
    assert found == [seen]
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == limit


def test_a_limit_below_avx512_leaves_inference_alone(model: Path, repository: Path) -> None:
    """In a process of its own, since the library reads it once. Unhidden this one ends in "bad combination"."""
    code = (
        "import numpy as np; from runtime.backends import open_backend; "
        f"backend = open_backend({str(model)!r}, backend='openvino'); "
        "raw = backend.infer(np.zeros((2, 64, 64, 3), np.uint8), np.full((2, 2), 64, np.int32)); "
        "print(raw.num_detections.tolist())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[[0], [0]]", done.stderr


class Delegate:
    """Passes everything on to the real object."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class SmallCore(Delegate):
    """A core whose models run out of memory above 3 images."""

    def compile_model(self, *arguments: Any) -> SmallModel:
        return SmallModel(self.real.compile_model(*arguments))


class SmallModel(Delegate):
    def create_infer_request(self) -> SmallRequest:
        return SmallRequest(self.real.create_infer_request())


class SmallRequest(Delegate):
    def infer(self, feed: dict[str, np.ndarray], **options: bool) -> None:
        if len(feed["images"]) > 3:
            raise RuntimeError("Exception from src/plugins:\n[CPU] std::bad_alloc")
        self.real.infer(feed, **options)


def test_out_of_memory_names_a_batch_that_fits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = SmallCore(shared_core())
    monkeypatch.setattr(ov, "shared_core", lambda: core)
    backend = OpenVinoBackend(model)
    with pytest.raises(BackendError, match=r"a batch of 2 fits: use --batch 2"):
        backend.infer(*canvases(8))
    assert backend.infer(*canvases(3)).num_detections.tolist() == [[1], [0], [1]]


def test_without_openvino(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def blocked(name: str, *rest: object, **options: object) -> object:
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'")
        return original(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(BackendError, match=r"pip install 'atss-toolkit\[openvino\]'"):
        open_backend(model, backend="openvino")
    description = open_backend(model).description
    assert description.startswith("ONNX Runtime ")
    assert "openvino: openvino cannot be imported" in description


def test_the_manifest_needs_no_other_library(model: Path, repository: Path) -> None:
    """Neither onnx nor onnxruntime: the metadata comes from OpenVINO's own reader."""
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; "
        "from runtime.backends import open_backend; "
        f"print(open_backend({str(model)!r}, backend='openvino').manifest.classes)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "('red', 'other')", done.stderr


SIGNAL = """
import faulthandler, os, signal, sys
import openvino
from runtime.backends import openvino_backend as ov

faulthandler.enable()  # handlers run on a stack of their own, as in any process where one asked for it
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
if sys.argv[2] == "cores":
    ov.shared_core = openvino.Core
backends = [ov.OpenVinoBackend(sys.argv[1]), ov.OpenVinoBackend(sys.argv[1])]
while backends:
    backends.pop(0).close()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def signalled(model: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SIGNAL, str(model), how], capture_output=True, text=True, timeout=60)


def test_a_signal_after_two_models_finds_its_stack(model: Path) -> None:
    """Opened and closed in one order, as `evaluate` does with several models; Ctrl-C and ended workers are signals."""
    done = signalled(model, "as it is")
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_with_a_core_for_each_model_the_signal_ends_the_process(model: Path) -> None:
    """That the test above can fail. A handler on a freed stack may end the process in any way, or hang it."""
    try:
        done = signalled(model, "cores")
    except subprocess.TimeoutExpired:
        return
    if done.returncode == 0:
        pytest.skip("this OpenVINO on this CPU leaves the stack alone; where that is so of all, shared_core may go")
    assert done.returncode < 0, done.stderr  # by a signal, not by an exception of Python's
