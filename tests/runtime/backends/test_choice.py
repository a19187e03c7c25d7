"""What runs a file: by name, or the best that starts."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="one of the backends")

from runtime.backends import BackendError, choice, open_backend
from runtime.backends.openvino_backend import OpenVinoBackend
from runtime.backends.options import (
    BACKENDS,
    OPTIONS_BY_BACKEND,
    BackendOptions,
    add_backend_arguments,
    backend_options,
)
from runtime.backends.ort.backend import OrtBackend
from runtime.backends.trt import backend as trt_module
from runtime.detector import Detector

from ...support.ort_fake import FakeOrt

# A value of each option that isn't its default.
GIVEN: dict[str, Any] = {
    "device": 1,
    "threads": 2,
    "allow_fallback": True,
    "allow_saturation": True,
    "precision_hint": "bf16",
    "hint": "throughput",
    "engine_cache": Path("engines"),
    "binding": "pycuda",
}
AUTO_RUNS = {
    "device": "cuda",
    "threads": "cuda",
    "allow_saturation": "cuda",
    "precision_hint": "openvino",
    "hint": "openvino",
}  # first tried


@pytest.fixture(autouse=True)
def _nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATSS_TOOLKIT_CACHE", str(tmp_path / "cache"))


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
    open_backend(model)
    assert tried == ["cuda"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[BackendOptions]:
    """What each backend was opened with; none of them really opens."""
    found: list[BackendOptions] = []

    class Opened:
        def __init__(self, path: Path, options: BackendOptions) -> None:
            found.append(options)
            self.description = ""

    def engine(path: Path, **given: Any) -> None:
        found.append(BackendOptions("tensorrt", **given))

    monkeypatch.setattr(choice, "OrtBackend", Opened)
    monkeypatch.setattr(choice, "OpenVinoBackend", Opened)
    monkeypatch.setattr(trt_module, "TrtBackend", engine)
    return found


def test_the_table_has_every_backend_and_option() -> None:
    assert set(OPTIONS_BY_BACKEND) == set(BACKENDS)
    options = {field.name for field in fields(BackendOptions)} - {"backend"}
    assert options == set(GIVEN) == set().union(*OPTIONS_BY_BACKEND.values())
    assert all(getattr(BackendOptions(), name) != value for name, value in GIVEN.items())


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_option_is_handed_on_or_refused(
    backend: str, name: str, model: Path, tmp_path: Path, opened: list[BackendOptions]
) -> None:
    path = tmp_path / "x.engine" if backend == "tensorrt" else model
    asked = BackendOptions(backend=backend, **{name: GIVEN[name]})
    flag = f"--{name.replace('_', '-')}"
    if name in OPTIONS_BY_BACKEND[backend]:
        open_backend(path, backend=backend, **{name: GIVEN[name]})
        assert opened == [asked]
        return
    with pytest.raises(
        BackendError, match=rf"^{flag}( \S+)? is for --backend .*, not {backend}; leave it out"
    ) as caught:
        open_backend(path, backend=backend, **{name: GIVEN[name]})
    named = str(caught.value).split("--backend ")[1].split(", not ")[0].split(", ")
    assert named == [other for other in BACKENDS if name in OPTIONS_BY_BACKEND[other]]
    assert opened == []


@pytest.mark.parametrize("name", GIVEN)
def test_an_engine_without_a_backends_name_drops_no_option(
    name: str, tmp_path: Path, opened: list[BackendOptions]
) -> None:
    if name in OPTIONS_BY_BACKEND["tensorrt"]:
        open_backend(tmp_path / "x.engine", **{name: GIVEN[name]})
        assert opened == [BackendOptions("tensorrt", **{name: GIVEN[name]})]
        return
    with pytest.raises(BackendError, match=r" is for --backend .*, not tensorrt"):
        open_backend(tmp_path / "x.engine", **{name: GIVEN[name]})


@pytest.mark.parametrize("name", GIVEN)
def test_auto_takes_only_what_reads_every_option(name: str, model: Path, opened: list[BackendOptions]) -> None:
    if name in AUTO_RUNS:
        open_backend(model, **{name: GIVEN[name]})
        assert opened == [BackendOptions(AUTO_RUNS[name], **{name: GIVEN[name]})]
        return
    with pytest.raises(BackendError, match=rf"--{name.replace('_', '-')}.* --backend "):
        open_backend(model, **{name: GIVEN[name]})
    assert opened == []


def test_auto_without_a_backend_for_all_that_is_given(model: Path, opened: list[BackendOptions]) -> None:
    with pytest.raises(BackendError, match=r"--hint throughput is for --backend openvino; --device 1 is for .*cuda"):
        open_backend(model, device=1, hint="throughput")
    open_backend(model, threads=2, hint="throughput")
    assert opened == [BackendOptions("openvino", threads=2, hint="throughput")]


class Watched:
    """Options that remember which were looked at."""

    def __init__(self, options: BackendOptions) -> None:
        self.options, self.read = options, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.options, name)


@pytest.mark.parametrize("backend", ["cpu", "openvino", "cuda", "ort-tensorrt"])
def test_what_the_table_says_is_read_is_read(
    backend: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: Any = Watched(BackendOptions(backend, threads=1, engine_cache=tmp_path / "own"))
    if backend == "openvino":
        pytest.importorskip("openvino")
        OpenVinoBackend(model, watched)
    else:
        if backend != "cpu":
            monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt())  # type: ignore[arg-type]
        OrtBackend(model, watched)
    assert OPTIONS_BY_BACKEND[backend] <= watched.read


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
        ({"backend": "cpu", "device": 1}, "--device 1 is for --backend cuda, ort-tensorrt, ort-rtx, tensorrt, not cpu"),
        ({"backend": "cpu", "precision_hint": "bf16"}, "--precision-hint bf16 is for --backend openvino, not cpu"),
        ({"backend": "tensorrt"}, "--backend tensorrt runs engines; build one with python -m export.to_trt"),
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
    with pytest.raises(BackendError, match="an engine runs in TensorRT only, not in --backend cpu"):
        open_backend(tmp_path / "x.engine", backend="cpu")
