"""Backends that are really tried, in this process and in ones of their own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.backends.options import BACKENDS as OFFERED
from runtime.backends.ort import libraries as ort_libraries
from runtime.doctor import trials as doctor_trials
from runtime.doctor.trials import BACKENDS, PROBE, Trial, attempt, run_trials
from runtime.machine.cuda_libraries import Library
from runtime.machine.gpus import Gpus

from ...support.standin.install import LIBRARIES, install


def test_nothing_to_try() -> None:
    assert run_trials([]) == []


def test_every_backend_is_tried() -> None:
    assert set(BACKENDS) == set(OFFERED)


def test_the_probe_is_what_it_says() -> None:
    onnx = pytest.importorskip("onnx", reason="makes it anew")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "probe",
        [helper.make_tensor_value_info("x", kind, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", kind, [1, 1, 4, 4])],
        [onnx.numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    assert onnx.load_from_string(PROBE) == model
    padded = np.pad(np.ones((4, 4)), 1)
    sums = [[padded[i : i + 3, j : j + 3].sum() for j in range(4)] for i in range(4)]
    np.testing.assert_array_equal(doctor_trials.PROBE_OUTPUT[0, 0], sums)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_what_is_here_runs(backend: doctor_trials.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip({"cpu": "onnxruntime"}.get(backend, backend), reason="tried")
    trial = attempt(backend)
    assert trial.runs, trial.said
    assert library.__version__.split("-")[0] in trial.said
    monkeypatch.setattr(doctor_trials, "PROBE_OUTPUT", np.zeros((1, 1, 4, 4), np.float32))
    trial = attempt(backend)
    assert not trial.runs
    assert trial.said.startswith("it computes wrong numbers: [4.0, 6.0, 6.0, 4.0")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries of this environment; a machine with a GPU has tests of its own."""
    fake = pytest.importorskip("tests.support.ort_fake")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake.FakeOrt(available=("CPUExecutionProvider",)))
    for backend in ("cuda", "ort-tensorrt"):
        trial = attempt(backend)  # type: ignore[arg-type]
        assert not trial.runs
        assert "this ONNX Runtime has no " in trial.said
        assert "install onnxruntime-gpu in place of onnxruntime (extra: atss-toolkit[gpu])" in trial.said


def use_gpu_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: object):  # type: ignore[no-untyped-def]
    fake = pytest.importorskip("tests.support.ort_fake").FakeOrt(**options)
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_tensorrt.so").write_bytes(b"libnvinfer.so.10")
    fake.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(ort_libraries, "is_loadable", lambda name: name not in fake.missing)
    monkeypatch.setattr(ort_libraries, "cuda_libraries", lambda: [Library("onnxruntime-gpu", "1.99", 13)])
    monkeypatch.setattr(ort_libraries, "list_gpus", lambda: Gpus(None, (), "NVML was not found"))
    return fake


def test_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = use_gpu_build(monkeypatch, tmp_path)
    assert attempt("cuda") == Trial("cuda", True, "ONNX Runtime 1.99, CUDAExecutionProvider")
    assert fake.has_loaded


def test_cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_gpu_build(monkeypatch, tmp_path, broken=("CUDAExecutionProvider",), silent=True)
    no_driver = (
        "ONNX Runtime could not start CUDAExecutionProvider and fell back to CPUExecutionProvider: no NVIDIA driver "
        "was found, which onnxruntime-gpu 1.99 (CUDA 13) needs: install the driver, 580 or newer"
    )
    assert attempt("cuda") == Trial("cuda", False, no_driver)
    assert attempt("ort-tensorrt") == Trial("ort-tensorrt", False, no_driver), "it needs CUDA's too"


@pytest.mark.parametrize(("version", "runs"), [("10.16.1", True), ("11.4.0", False)])
def test_ort_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, runs: bool) -> None:
    use_gpu_build(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))  # type: ignore[arg-type]
    trial = attempt("ort-tensorrt")
    assert trial.runs is runs
    assert ("not run: it builds an engine" in trial.said) is runs
    assert ("pip install 'tensorrt-cu13>=10,<11'" in trial.said) is not runs


def test_ort_rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    use_gpu_build(monkeypatch, tmp_path, devices=2)
    assert "pip install onnxruntime-ep-nv-tensorrt-rtx" in attempt("ort-rtx").said
    plugin = SimpleNamespace(get_library_path=lambda: "/plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)  # type: ignore[arg-type]
    assert attempt("ort-rtx") == Trial("ort-rtx", True, "ONNX Runtime 1.99, NvTensorRTRTXExecutionProvider, 2 GPUs")
    sys.modules["onnxruntime"].registered.clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.modules["onnxruntime"], "devices", 0)
    assert attempt("ort-rtx") == Trial("ort-rtx", False, "NVIDIA's plugin sees no RTX GPU")


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_tensorrt(monkeypatch: pytest.MonkeyPatch, binding: str) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    if binding == "pycuda":
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    stand_in = install(monkeypatch, binding, LIBRARIES[1])  # type: ignore[arg-type]
    trial = attempt("tensorrt")
    assert trial == Trial(
        "tensorrt",
        True,
        f"TensorRT {stand_in.version}, Stand-in (8.6) through {binding}, 1.0 of 1.0 GiB free (no engine was run)",
    )
    stand_in.driver.devices = 0
    trial = attempt("tensorrt")
    assert not trial.runs
    assert trial.said.startswith(f"TensorRT {stand_in.version} can be imported, but CUDA finds no usable device (")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    trial = attempt("tensorrt")
    assert not trial.runs
    assert "tensorrt cannot be imported" in trial.said
    assert "pip install 'atss-toolkit[gpu]'" in trial.said


# Processes of their own -----------------------------------------------------------------------------------------------


def in_place_of_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os; os.abort()", "its library crashed the process (SIGABRT): install another version of it"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "its library crashed the process (SIGILL)"),
        ("import sys; sys.exit('no licence')", "exit code 1: no licence"),
        ("import os; os._exit(0)", "exit code 0: no message"),
        ("import os; print('hello', flush=True); os._exit(0)", "exit code 0: no message"),
        ("raise ImportError('libfoo.so: cannot open')", "onnxruntime cannot be imported (libfoo.so: cannot open); ins"),
        ("raise ValueError('two\\nlines')", "ValueError: two"),
        ("print('noise')", "AttributeError: module 'onnxruntime' has no attribute"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_library_that_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str) -> None:
    in_place_of_onnxruntime(tmp_path, monkeypatch, source)
    (trial,) = run_trials(["cpu"])
    assert (trial.backend, trial.runs) == ("cpu", False)
    assert trial.said.startswith(said)
    assert "\n" not in trial.said


def test_a_library_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_onnxruntime(tmp_path, monkeypatch, "import time; time.sleep(600)")
    started = time.monotonic()
    assert run_trials(["cpu"], limit_s=3) == [Trial("cpu", False, "its library did not answer in time and was stopped")]
    assert time.monotonic() - started < 60


def test_a_backend_that_does_not_exist(capsys: pytest.CaptureFixture) -> None:
    assert doctor_trials.main(["gpu"]) == 2
    assert "'gpu', expected one of cpu, openvino" in capsys.readouterr().err


def test_the_process_answers_in_json(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_trials.os, "_exit", lambda code: code)
    monkeypatch.setattr(doctor_trials, "start_backend", lambda backend: "fine")
    doctor_trials.main(["cpu"])
    assert json.loads(capsys.readouterr().out) == {"runs": True, "said": "fine"}
