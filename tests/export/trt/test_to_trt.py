"""The command: from a file or a checkpoint to an engine and its description; clear words for bad input."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto

from export import api, export_step
from export.arguments import ArgumentError, workspace_bytes
from export.onnx_model.network import load_deployed
from export.quantization.scheme import Scheme
from export.results import ExportedModel
from export.to_trt import main
from export.trt import engine
from export.trt.build import BuildResult
from export.trt.engine import EngineSource
from export.trt.library import Library
from export.trt.settings import BuildError, Settings
from export.verification.checks import Verification
from runtime.backends.engine_file import EngineManifest, Profile, read_engine
from runtime.errors import UserError
from runtime.files import sha256_file
from runtime.manifest import InputShapes, Precision
from train.checkpoint import LoadedDetector

from ...support.blocked import TRAINING, run_without
from ...support.rtx import LIBRARY, SMALL, one_line
from ..conftest import Exported, restamp


def test_the_command_builds_and_describes(exported: Exported, repository: Path, tmp_path: Path) -> None:
    model = shutil.copy(exported.model, tmp_path / "model.onnx")
    command = subprocess.run(
        [sys.executable, "export/to_trt.py", str(model), "--compute-capability", "8.6", "12.0", *SMALL],
        cwd=repository,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert command.returncode == 0, command.stderr
    assert command.stderr == ""
    lines = command.stdout.splitlines()
    assert lines[0].endswith("for 8.6, 12.0")
    assert lines[1].endswith("batch 1–16 (tuned for 4), canvases 64×64 to 1344×1344 (tuned for 192×256)")
    assert "could not be read" in lines[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]
    _, described = read_engine(tmp_path / "model.engine")
    names = [(tensor.name, tensor.kind, tensor.dtype, tensor.shape) for tensor in described.tensors]
    assert names[:3] == [
        ("images", "input", "uint8", (-1, -1, -1, 3)),
        ("image_sizes", "input", "int32", (-1, 2)),
        ("num_detections", "output", "int32", (-1, 1)),
    ]
    assert described.rebuild == (
        "python -m export.to_trt model.onnx -o model.engine --flavor rtx --compute-capability 8.6 12.0 "
        "--batch 1 4 16 --shapes 64x64:192x256:1344x1344"
    )
    assert str(tmp_path) not in (tmp_path / "model.engine.json").read_text()


def test_one_engine_per_gpu_and_two_profiles(
    deployed: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is asked of the library, without building four times."""
    asked = []

    def fake(library: Library, source: object, settings: Settings, out: Path, **_: object) -> None:
        asked.append((settings.compute_capabilities, settings.profiles, out.name))
        out.touch()

    monkeypatch.setattr(engine, "build_engine_file", fake)
    monkeypatch.setattr(api, "choose_library", lambda *_: LIBRARY)
    model = shutil.copy(deployed["bf16"], tmp_path / "model.bf16.onnx")
    assert (
        main([str(model), "-o", str(tmp_path / "m.engine"), "--compute-capability", "8.6", "12.0", "--separate"]) == 0
    )
    landscape = Profile((1, 64, 64), (16, 192, 256), (16, 192, 256))
    upright = Profile((1, 64, 64), (16, 256, 192), (16, 256, 192))
    profiles = (landscape, upright)
    assert asked == [(("8.6",), profiles, "m.sm86.engine"), (("12.0",), profiles, "m.sm120.engine")]
    asked.clear()
    assert main([str(model)]) == 0
    assert asked == [(("8.0", "8.6", "8.9", "12.0", "12.1"), profiles, "model.bf16.engine")]


def test_a_file_that_is_replaced_meanwhile(
    deployed: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine and its description are of the file that was read first, both."""
    path = Path(shutil.copy(deployed["fp16"], tmp_path / "model.onnx"))
    real, given = api.make_profiles, []

    def replacing(*arguments: Any) -> object:
        shutil.copy(deployed["fp32"], path)
        return real(*arguments)

    def built(library: Library, source: Path, model: bytes, *_: object) -> BuildResult:
        given.append(model)
        return BuildResult(b"vtrt", (), ("8.6",), {"fp16": 60}, b"", (), 1.0)

    monkeypatch.setattr(api, "make_profiles", replacing)
    monkeypatch.setattr(engine, "build", built)
    assert main([str(path), "--compute-capability", "8.6"]) == 0
    assert given == [deployed["fp16"].read_bytes()]
    _, described = read_engine(tmp_path / "model.engine")
    assert described.manifest.precision == "fp16"
    assert described.onnx_sha256 == sha256_file(deployed["fp16"])


@pytest.mark.slow
def test_from_a_checkpoint_in_one_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a detector that is less sure than the fixture's: among hundreds of near-tied boxes fp16 keeps others."""
    content = torch.load(checkpoint, weights_only=True)
    content["model"]["head.class_logits.bias"] -= 2
    copied = tmp_path / "best.pt"
    torch.save(content, copied)
    options = ["--precision", "fp16", "--compute-capability", "8.6", "--canvas", "192", "256", "--batch", "1", "2", "2"]
    assert main([str(copied), *options]) == 0
    names = ["best.fp16.engine", "best.fp16.engine.json", "best.fp16.onnx", "best.onnx", "best.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    _, described = read_engine(tmp_path / "best.fp16.engine")
    assert described.manifest.precision == "fp16"
    assert described.manifest.checkpoint_sha256 == sha256_file(copied)
    assert described.profiles == (Profile((1, 192, 256), (2, 192, 256), (2, 192, 256)),)
    assert "none beyond the limit" in capsys.readouterr().out


def test_from_a_checkpoint_by_way_of_the_exported_file(
    exported: Exported,
    deployed: dict[Precision, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The steps between, with the export that other tests made and without the build. The checkpoint is loaded once."""
    asked: list[object] = []
    real_load = export_step.load_detector

    def load(path: Path) -> LoadedDetector:
        asked.append(f"load {path.name}")
        return real_load(path)

    def export(
        loaded: LoadedDetector,
        out: Path,
        shapes: InputShapes,
        scheme: Scheme,
        images: str | None,
        calibrate_on: str | None,
        show_progress: bool,
    ) -> ExportedModel:
        asked.append((out.name, shapes.summary(), scheme.precision, images, calibrate_on))
        path = out if scheme.precision == "fp32" else out.with_suffix(f".{scheme.precision}.onnx")
        shutil.copy(deployed[scheme.precision], path)
        problems = ("it differs",) if shapes.batch_max == 7 else ()
        return ExportedModel(path, 1, load_deployed(path)[1], Verification(problems=problems))

    def build(library: Library, source: EngineSource, settings: Settings, out: Path, **_: Any) -> EngineManifest:
        asked.append((source.path.name, source.manifest.precision, out.name))
        out.touch()
        return None  # type: ignore[return-value]

    monkeypatch.setattr(export_step, "load_detector", load)
    monkeypatch.setattr(export_step, "publish_export", export)
    monkeypatch.setattr(engine, "build_engine_file", build)
    model = str(shutil.copy(exported.checkpoint, tmp_path / "best.pt"))
    gpu = ["--compute-capability", "8.9"]
    assert main([model, *gpu]) == 0
    assert main([model, *gpu, "--precision", "fp32", "--canvas", "192", "256", "--batch", "1", "2", "4"]) == 0
    images = ["--images", "seen", "--calibrate-on", "trained"]
    assert main([model, *gpu, "--precision", "int8", *images, "-o", str(tmp_path / "my.engine")]) == 0
    assert asked == [
        "load best.pt",
        ("best.onnx", "canvases 64×64 to 1344×1344, batch 1-16", "fp16", None, None),
        ("best.fp16.onnx", "fp16", "best.fp16.engine"),
        "load best.pt",
        ("best.onnx", "canvas 192×256 (height × width), batch 1-4", "fp32", None, None),
        ("best.onnx", "fp32", "best.fp32.engine"),
        "load best.pt",
        ("best.onnx", "canvases 64×64 to 1344×1344, batch 1-16", "int8", "seen", "trained"),
        ("best.int8.onnx", "int8", "my.engine"),
    ]
    assert capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines() == [
        "writing best.onnx, best.fp16.onnx (files of these names are replaced)",
        "writing best.onnx (files of these names are replaced)",
        "writing best.onnx, best.int8.onnx, best.calibration.json (files of these names are replaced)",
    ]
    with pytest.raises(BuildError, match="its numbers change too much"):
        main([model, *gpu, "--batch", "1", "1", "7"])
    with pytest.raises(BuildError, match=r"fp8 needs 8\.9 or later"):
        main([model, "--precision", "fp8", "--compute-capability", "8.6"])


# Bad input.


def test_bad_files_get_one_line(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    foreign, old, changed, truncated, outside = (tmp_path / f"{name}.onnx" for name in "abcde")
    del model.metadata_props[:]
    foreign.write_bytes(model.SerializeToString())
    truncated.write_bytes(exported.model.read_bytes()[:10_000])
    model = onnx.load(exported.model)
    model.opset_import[0].version = 11
    restamp(model, old)
    model = onnx.load(exported.model)
    model.graph.node[0].name = "another"
    changed.write_bytes(model.SerializeToString())
    model = onnx.load(exported.model)
    weights = next(value for value in model.graph.initializer if len(value.dims) == 4)
    onnx.external_data_helper.set_external_data(weights, "weights.bin")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    restamp(model, outside)
    for path, message in (
        (foreign, "no manifest"),
        (old, "opset 11, expected 21"),
        (changed, "changed after its export"),
        (truncated, "not an ONNX file, or cut short"),
        (outside, "weights"),
        (tmp_path / "missing.onnx", "missing.onnx"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            main([str(path)])
        one_line(caught.value)
    assert list(tmp_path.glob("*.engine*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "2000x64"], "--shapes 2000x64: expected sides that are multiples of 32"),
        (["--shapes", "2016x64"], "the graph was exported for canvases 64×64 to 1344×1344; 2016×64 is outside"),
        (["--shapes", "64"], "expected HEIGHTxWIDTH, or three of them"),
        (["--shapes", "64x64:128x128"], "expected HEIGHTxWIDTH, or three of them"),
        (["--shapes", "128x128:64x64:256x256"], "expected MIN ≤ OPT ≤ MAX in height and in width"),
        (["--batch", "1", "8", "32"], "--batch 1 8 32: expected MIN ≤ OPT ≤ MAX within the 1 to 16"),
        (["--batch", "4", "2", "8"], "--batch 4 2 8: expected MIN ≤ OPT ≤ MAX"),
        (["-o", "model.onnx"], "-o model.onnx: expected a name that ends in .engine"),
        (["-o", "/"], "-o /: expected a name"),
        (["-o", "/dev/null/model.engine"], "cannot write"),
        (["--compute-capability", "sm86"], "--compute-capability sm86: TensorRT for RTX builds for 7.5, 8.0, 8.6"),
        (["--separate"], "--separate requires --compute-capability"),
        (
            ["--precision", "fp16", "--calibrate-on", "x"],
            "--precision, --calibrate-on: model.onnx was exported already",
        ),
        (["--canvas", "64", "64"], "--canvas: model.onnx was exported already"),
    ],
)
def test_bad_options_get_one_line(arguments: list[str], message: str, exported: Exported) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main([str(exported.model), "--flavor", "rtx", *arguments])
    one_line(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [["--workspace", "0"], ["--workspace", "nan"], ["--optimization-level", "6"], ["--batch", "0", "1", "2"]],
)
def test_numbers_out_of_bounds(arguments: list[str], exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(exported.model), "--flavor", "rtx", *arguments])
    assert ended.value.code == 2
    assert f"argument {arguments[0]}: {arguments[1]}: expected" in capsys.readouterr().err


def test_scratch_memory_without_sense() -> None:
    for gib in (0, float("nan"), -1):
        with pytest.raises(UserError, match=f"--workspace {gib}: expected GiB, more than 0"):
            workspace_bytes(gib)


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"model\.txt: expected an exported file \(\.onnx\) or a checkpoint"):
        main([str(tmp_path / "model.txt")])
    with pytest.raises(UserError, match="no checkpoint at"):
        main([str(tmp_path / "missing.pt")])


def test_what_a_checkpoint_cannot_become_is_said_before_its_export(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> ExportedModel:
        raise AssertionError("exported")

    monkeypatch.setattr(export_step, "publish_export", never)
    for arguments, message in (
        (["--batch", "4", "2", "8"], "--batch 4 2 8: expected MIN ≤ OPT ≤ MAX"),
        (["--batch", "3", "2", "8"], "--batch 3 2 8: expected MIN ≤ OPT ≤ MAX"),
        (["--shapes", "100x64"], "--shapes 100x64: expected sides that are multiples of 32"),
        (["--canvas", "192", "256", "--shapes", "64x64"], "the graph was exported for canvases 192×256 to 192×256"),
        (["--timing-cache", "x"], "--timing-cache: TensorRT for RTX has no such option"),
        (["--canvas", "64", "64"], "--canvas 64 64: images are resized to a shorter side of 192"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            main([str(exported.checkpoint), "--flavor", "rtx", *arguments])
        one_line(caught.value)


# What is installed on a machine that only builds and runs.


def test_an_engine_is_built_where_torch_is_not_installed(
    fixed: tuple[object, Path], repository: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "model.engine")
    command = run_without(TRAINING, repository, str(fixed[1]), "-o", out, "--compute-capability", "8.6")
    assert (command.returncode, command.stderr) == (0, "")
    read_engine(out)


@pytest.mark.parametrize(
    ("libraries", "suffix", "message"),
    [
        (
            "onnx",
            "onnx",
            "error: onnx is not installed; an engine is built from a file that onnx reads: pip install onnx",
        ),
        (TRAINING, "pt", "error: torch is not installed; export the checkpoint where it was trained"),
        ("tensorrt tensorrt_rtx", "onnx", "error: tensorrt-rtx cannot be imported (No module named 'tensorrt_rtx')"),
    ],
)
def test_a_missing_library_gets_one_line(libraries: str, suffix: str, message: str, repository: Path) -> None:
    command = run_without(libraries, repository, f"model.{suffix}", "--flavor", "rtx")
    assert command.returncode == 2
    assert command.stderr.startswith(message)
    assert len(command.stderr.splitlines()) == 1
