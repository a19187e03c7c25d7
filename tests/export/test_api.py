"""The functions of `export.api`: what they return, what they raise, and that they neither print nor load too much."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import api, export_step, quantize_step
from export.api import build_engine, export_onnx, quantize, verify
from export.arguments import ArgumentError, MissingLibraryError, require_libraries
from export.console import log_to_console
from export.onnx_model.network import load_deployed
from export.quantization.convert import convert_model
from export.trt import engine
from export.trt.engine import EngineSource
from export.trt.library import Library
from export.trt.settings import Settings
from export.verification.checks import DETECTIONS, Check, Verification
from runtime.errors import UserError

from .conftest import Exported, restamp


@pytest.mark.parametrize(
    "module", ["export.api", "export.to_onnx", "export.quantize", "export.to_trt", "export.verify"]
)
def test_importing_loads_no_heavy_library(module: str, repository: Path) -> None:
    """So help texts come at once, and a missing library gets one line."""
    program = f"import sys, {module}; print(sorted({{'torch', 'onnx', 'onnxruntime', 'tyro'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_export_returns_the_published_file(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tracing is the fixture's. Nothing is printed unless the caller asks for the log."""
    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: exported.model.read_bytes())
    out = tmp_path / "mine.onnx"
    made = export_onnx(exported.checkpoint, out)
    assert (made.path, made.size, made.passed) == (out, exported.model.stat().st_size, True)
    assert made.manifest == load_deployed(exported.model)[1]
    assert made.table.splitlines()[-1] == "16 comparisons, none beyond the limit"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_an_export_in_another_precision_returns_the_conversion(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: exported.model.read_bytes())
    monkeypatch.setattr(export_step, "verify_export", lambda *_: [])
    monkeypatch.setattr(quantize_step, "verify_conversion", lambda *_: [])
    made = export_onnx(exported.checkpoint, tmp_path / "mine.onnx", precision="bf16")
    assert made.path == tmp_path / "mine.bf16.onnx"
    assert made.manifest.precision == "bf16"
    assert (tmp_path / "mine.onnx").read_bytes() == exported.model.read_bytes()


def test_a_conversion_that_fails_returns_the_kept_file(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> onnx.ModelProto:
        model = convert_model(*arguments)
        weight = next(value for value in model.graph.initializer if len(value.dims) == 4)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.5), weight.name))
        return onnx.load(restamp(model, tmp_path / "scratch.onnx"))

    monkeypatch.setattr(quantize_step, "convert_model", broken)
    made = quantize(exported.model, "fp16", tmp_path / "out.onnx")
    assert not made.passed
    assert made.path == tmp_path / "out.failed.onnx"
    assert made.size == made.path.stat().st_size
    assert made.manifest.precision == "fp16"
    assert "TOO LARGE" in made.table
    assert not (tmp_path / "out.onnx").exists()


def test_an_engine_for_each_gpu_is_returned(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(library: Library, source: EngineSource, settings: Settings, out: Path, **_: Any) -> Any:
        out.write_bytes(b"vtrt")
        return settings.compute_capabilities

    monkeypatch.setattr(engine, "build_engine_file", build)
    monkeypatch.setattr(api, "choose_library", lambda *_: Library("rtx", SimpleNamespace(), None))
    built = build_engine(
        exported.model, tmp_path / "m.engine", compute_capabilities=("8.6", "8.6", "12.0"), separate=True
    )
    assert [(one.path.name, one.size, one.manifest, one.verification) for one in built] == [
        ("m.sm86.engine", 4, ("8.6",), None),
        ("m.sm120.engine", 4, ("12.0",), None),
    ]


def test_a_verification_tells_passed_from_failed(exported: Exported, converted: dict[str, Path]) -> None:
    passed = verify(exported.model, converted["fp16"])
    assert passed.passed
    assert passed.table.endswith("none beyond the limit")
    failed = Verification((Check("1 × 64 × 64", DETECTIONS, 5, 0.5, 0.01),), confirmed=("one thing",))
    assert not failed.passed
    assert failed.table.splitlines()[0] == "ok           one thing"
    assert not Verification(problems=("another",)).passed
    assert (passed + failed).checks == passed.checks + failed.checks


def test_arguments_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"-o x\.engine: expected a name that ends in \.onnx"):
        export_onnx(tmp_path / "missing.pt", "x.engine")
    with pytest.raises(UserError, match="precision is 'fp17', expected 'fp32' or 'fp16'"):
        quantize("a.onnx", "fp17")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="expected another file than the model"):
        quantize("a.onnx", "fp16", "a.onnx")
    with pytest.raises(ArgumentError, match="--separate requires --compute-capability"):
        build_engine("a.onnx", separate=True)
    with pytest.raises(ArgumentError, match=r"--images: a\.onnx was exported already"):
        build_engine("a.onnx", images="folder")


def test_a_missing_library_is_named_with_advice() -> None:
    require_libraries(("onnx",), "never said")
    with pytest.raises(MissingLibraryError, match="no_such_library is not installed; pip install no_such_library"):
        require_libraries(("onnx", "no_such_library"), "pip install {name}")


@pytest.mark.parametrize("module", ["to_onnx", "quantize", "to_trt", "verify"])
def test_the_nearest_option_is_named(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"export.{module}").main(["a", "b", "--imges", "x", "--precision", "fp16"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"did you mean --images? (python -m export.{module} --help lists the options)" in said
    assert said.count("\n") == 1
    assert "--imges x" in said


def test_a_command_prints_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("export.some.module")
    logger.info("before")
    with log_to_console():
        logger.info("progress of 50 %s")
        logger.warning("warning: one")
        logger.debug("a detail")
    logger.info("after")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("progress of 50 %s\n", "warning: one\n")
