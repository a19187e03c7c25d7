"""What runs a file: by name, or the best that starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="one of the backends")

from runtime.backends import BackendError, choice, open_backend
from runtime.backends.options import BACKENDS, BackendOptions, add_backend_arguments, backend_options
from runtime.backends.ort import OrtBackend
from runtime.detector import Detector


def test_the_command_line_without_options_is_the_default() -> None:
    parser = argparse.ArgumentParser()
    add_backend_arguments(parser)
    assert BackendOptions(**backend_options(parser.parse_args([]))) == BackendOptions()
    given = parser.parse_args(
        ["--backend", "cuda", "--device", "3", "--threads", "2", "--allow-fallback", "--engine-cache", "e"]
    )
    assert BackendOptions(**backend_options(given)) == BackendOptions("cuda", 3, 2, True, engine_cache=Path("e"))
    given = parser.parse_args(["--backend", "openvino", "--precision-hint", "bf16", "--hint", "throughput"])
    assert BackendOptions(**backend_options(given)) == BackendOptions(
        "openvino", precision_hint="bf16", hint="throughput"
    )


@pytest.mark.parametrize("arguments", [["--backend", "gpu"], ["--device", "-1"], ["--threads", "two"]])
def test_the_command_line_rejects(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    add_backend_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_every_name_opens_something_or_says_why(model: Path) -> None:
    said = {}
    for name in BACKENDS:
        try:
            said[name] = open_backend(model, backend=name).description
        except BackendError as error:
            said[name] = str(error)
    assert "CPUExecutionProvider" in said["cpu"]
    assert not any("\n" in text for text in said.values())
    with pytest.raises(BackendError, match="backend 'best': expected auto, cpu, openvino, cuda"):
        open_backend(model, backend="best")


def test_a_detector_says_what_it_picked(model: Path) -> None:
    with Detector(model) as detector:
        assert "(best that starts" in detector.backend.description
    with Detector(model, backend="cpu", threads=2) as detector:
        assert detector.backend.description.endswith("CPUExecutionProvider, 2 threads")


def refusing(monkeypatch: pytest.MonkeyPatch, **reasons: str) -> list[str]:
    """Backends whose names are given fail with that reason; the others are the CPU's. Returns the names tried."""
    tried: list[str] = []

    def open_one(path: Path, options: BackendOptions) -> OrtBackend:
        tried.append(options.backend)
        assert not options.allow_fallback
        if options.backend in reasons:
            raise BackendError(reasons[options.backend].format(path=path))
        return OrtBackend(path)

    monkeypatch.setattr(choice, "OrtBackend", open_one)
    monkeypatch.setattr(choice, "OpenVinoBackend", open_one)
    return tried


def test_the_best_that_starts_is_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refusing(monkeypatch)
    open_backend(model, allow_fallback=True)
    assert tried == ["cuda"]


def test_the_reasons_are_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refusing(monkeypatch, cuda="{path}: no driver; mend it", openvino="openvino is missing; install it")
    description = open_backend(model).description
    assert tried == ["cuda", "openvino", "cpu"]
    assert description.endswith("(best that starts; cuda: no driver; openvino: openvino is missing)")


def test_a_gpu_that_was_named_is_not_replaced_by_a_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refusing(monkeypatch, cuda="no GPU 1")
    with pytest.raises(BackendError, match="no GPU 1"):
        open_backend(model, device=1)
    assert tried == ["cuda"]


def test_bfloat16_is_not_replaced_by_float32(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refusing(monkeypatch, openvino="no bfloat16")
    with pytest.raises(BackendError, match="no bfloat16"):
        open_backend(model, precision_hint="bf16")
    assert tried == ["openvino"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cpu", "device": 1}, "--device 1: cpu runs on the CPU"),
        ({"backend": "openvino", "device": 1}, "--device 1: openvino runs on the CPU"),
        ({"backend": "cpu", "precision_hint": "bf16"}, "--precision-hint bf16 is for --backend openvino, not cpu"),
        ({"backend": "tensorrt"}, "--backend tensorrt runs engines; build one with python export/to_trt.py"),
    ],
)
def test_options_that_do_not_go_together(model: Path, options: dict, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(model, **options)


def test_a_damaged_file_is_the_files_fault_whatever_was_tried(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:200])
    with pytest.raises(BackendError, match=r"cut.onnx: ONNX Runtime cannot open it"):
        open_backend(tmp_path / "cut.onnx")
    with pytest.raises(BackendError, match=r"cannot read the model: No such file"):
        open_backend(tmp_path / "missing.onnx")


def test_an_engine_runs_in_tensorrt_only(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="an engine runs in TensorRT only, --backend cpu does not take it"):
        open_backend(tmp_path / "x.engine", backend="cpu")
