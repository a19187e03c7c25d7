"""Engines of TensorRT for RTX, really built on a CPU; the standard flavor's branches; clear words for bad input."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export import to_onnx, to_trt, trt_library
from export.calibration import calibrate
from export.convert import Scheme, converted_model
from export.engine_check import header_problems, read_header
from export.network import load_deployed
from export.pictures import synthetic_pictures
from export.to_onnx import export_model, input_shapes
from export.to_trt import EngineBuildError, build_engine, check_capabilities, main, rebuild_command
from export.trt_build import BuildError, ParseError, Settings, build
from export.trt_library import Library, LibraryError, choose
from export.trt_profiles import make_profiles
from export.trt_progress import Phases
from runtime.cuda import Device
from runtime.engine_file import Profile, read_engine, this_platform
from runtime.errors import UserError
from runtime.files import sha256_file
from runtime.manifest import Manifest, Precision, Preprocess, Thresholds
from train.checkpoint import load_detector
from train.systems import SYSTEMS

from .conftest import Exported, restamp
from .test_systems_export import narrowed, saved

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
LIBRARY = Library("rtx", rtx, None)
WHOLE = Profile((1, 64, 64), (4, 192, 256), (16, 1344, 1344))  # batch 1–16 and every canvas of the file
SMALL = ["--batch", "1", "4", "16", "--shapes", "64x64:192x256:1344x1344"]


def build_for(path: Path, *capabilities: str, profile: Profile = WHOLE) -> bytes:
    return build(LIBRARY, path, path.read_bytes(), Settings((profile,), capabilities)).data


@pytest.mark.parametrize(
    ("precision", "capabilities"),
    [
        ("fp32", ("7.5", "8.0", "8.6", "8.9", "12.0")),
        ("fp16", ("7.5", "8.0", "8.6", "8.9", "12.0")),
        ("bf16", ("8.0", "8.6", "8.9", "12.0")),
        ("int8", ("7.5", "8.0", "8.6", "8.9", "12.0")),
        ("fp8", ("8.9", "12.0")),
    ],
)
def test_every_precision_builds_with_nms_for_many_batches_and_canvases(
    precision: Precision, capabilities: tuple[str, ...], deployed: dict[Precision, Path], tmp_path: Path
) -> None:
    source, out = deployed[precision], tmp_path / f"model.{precision}.engine"
    _, manifest = load_deployed(source)
    described = build_engine(LIBRARY, source, manifest, Settings((WHOLE,), capabilities), out)
    data, again = read_engine(out)
    assert again == described
    assert again.manifest.precision == precision
    assert (again.flavor, again.library_version, again.platform) == ("rtx", rtx.__version__, this_platform())
    assert again.onnx_sha256 == sha256_file(source)
    assert again.profiles == (WHOLE,)
    assert header_problems(data, again) == []
    header = read_header(data)
    assert header is not None
    assert header.compute_capabilities == capabilities


@pytest.mark.parametrize(("precision", "capability", "needs"), [("bf16", "7.5", "8.0"), ("fp8", "8.6", "8.9")])
def test_gpus_without_the_type_are_refused(
    precision: Precision, capability: str, needs: str, deployed: dict[Precision, Path]
) -> None:
    """By the command at once, and by the library itself: the table says nothing that isn't so."""
    with pytest.raises(EngineBuildError, match=f"{precision} needs {needs} or later"):
        check_capabilities(precision, ["12.0", capability])
    with pytest.raises(BuildError, match=f"cannot build it for {capability}: .") as caught:
        build_for(deployed[precision], capability)
    assert len(str(caught.value).splitlines()) == 1


def test_a_fixed_canvas_and_batch_build(fixed: tuple[object, Path]) -> None:
    """And make no giant kernels: where joinings are fused into one another, the ways through them multiply.

    Decoding before the levels were joined gave 80 MB, with a kernel of 35 MB of source to compile on the GPU's machine.
    """
    shape = (1, 192, 224)
    data = build_for(fixed[1], "8.6", profile=Profile(shape, shape, shape))
    header = read_header(data)
    assert header is not None
    assert header.compute_capabilities == ("8.6",)
    kernels = [match.start() for match in re.finditer(b"__global__", data)]
    assert max(np.diff(kernels)) < 8e6


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
        "python export/to_trt.py model.onnx -o model.engine --flavor rtx --compute-capability 8.6 12.0 "
        "--batch 1 4 16 --shapes 64x64:192x256:1344x1344"
    )
    assert str(tmp_path) not in (tmp_path / "model.engine.json").read_text()


def test_one_engine_per_gpu_and_two_profiles(
    deployed: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is asked of the library, without building four times."""
    asked = []

    def fake(library: Library, source: Path, manifest: object, settings: Settings, out: Path, **_: object) -> None:
        asked.append((settings.compute_capabilities, settings.profiles, out.name))

    monkeypatch.setattr(to_trt, "build_engine", fake)
    monkeypatch.setattr(to_trt, "choose", lambda *_: LIBRARY)
    model = str(deployed["bf16"])
    assert main([model, "-o", str(tmp_path / "m.engine"), "--compute-capability", "8.6", "12.0", "--separate"]) == 0
    landscape = Profile((1, 64, 64), (16, 192, 256), (16, 192, 256))
    upright = Profile((1, 64, 64), (16, 256, 192), (16, 256, 192))
    profiles = (landscape, upright)
    assert asked == [(("8.6",), profiles, "m.sm86.engine"), (("12.0",), profiles, "m.sm120.engine")]
    asked.clear()
    assert main([model]) == 0
    assert asked == [(("8.0", "8.6", "8.9", "12.0", "12.1"), profiles, "model.bf16.engine")]


@pytest.mark.slow
def test_from_a_checkpoint_in_one_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = shutil.copy(checkpoint, tmp_path / "best.pt")
    options = ["--precision", "fp16", "--compute-capability", "8.6", "--canvas", "192", "256", "--batch", "1", "2", "2"]
    assert main([str(copied), *options]) == 0
    names = ["best.fp16.engine", "best.fp16.engine.json", "best.fp16.onnx", "best.onnx", "best.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    _, described = read_engine(tmp_path / "best.fp16.engine")
    assert described.manifest.precision == "fp16"
    assert described.manifest.checkpoint_sha256 == load_detector(checkpoint).sha256
    assert described.profiles == (Profile((1, 192, 256), (2, 192, 256), (2, 192, 256)),)
    assert "none beyond the limit" in capsys.readouterr().out


def test_from_a_checkpoint_by_way_of_the_exported_file(
    exported: Exported, deployed: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The steps between, with the export that other tests made and without the build."""
    asked: list[object] = []

    def fake_export(words: list[str]) -> int:
        asked.append(" ".join(words).replace(str(tmp_path), ""))
        shutil.copy(exported.model, words[2])
        if words[4] != "fp32":
            shutil.copy(deployed[words[4]], Path(words[2]).with_suffix(f".{words[4]}.onnx"))  # type: ignore[index]
        return int("7" in words)  # as if it differed

    def fake_build(library: Library, source: Path, manifest: Manifest, settings: Settings, out: Path, **_: Any) -> None:
        asked.append((source.name, manifest.precision, out.name))

    monkeypatch.setattr(to_onnx, "main", fake_export)
    monkeypatch.setattr(to_trt, "build_engine", fake_build)
    model = str(shutil.copy(exported.checkpoint, tmp_path / "best.pt"))
    gpu = ["--compute-capability", "8.9"]
    assert main([model, *gpu]) == 0
    assert main([model, *gpu, "--precision", "fp32", "--canvas", "192", "256", "--batch", "1", "2", "4"]) == 0
    pictures = ["--images", "seen", "--calibrate-on", "trained"]
    assert main([model, *gpu, "--precision", "int8", *pictures, "-o", str(tmp_path / "my.engine")]) == 0
    assert asked == [
        "/best.pt -o /best.onnx --precision fp16",
        ("best.fp16.onnx", "fp16", "best.fp16.engine"),
        "/best.pt -o /best.onnx --precision fp32 --batch-max 4 --canvas 192 256",
        ("best.onnx", "fp32", "best.fp32.engine"),
        "/best.pt -o /best.onnx --precision int8 --images seen --calibrate-on trained",
        ("best.int8.onnx", "int8", "my.engine"),
    ]
    with pytest.raises(EngineBuildError, match="its numbers change too much"):
        main([model, *gpu, "--batch", "1", "1", "7"])
    with pytest.raises(EngineBuildError, match=r"fp8 needs 8\.9 or later"):
        main([model, "--precision", "fp8", "--compute-capability", "8.6"])


# What a user without a GPU is told.


def test_a_standard_engine_without_a_gpu(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    if trt_library.find_device()[0] is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(LibraryError) as caught:
        main([str(exported.model), "--flavor", "tensorrt"])
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "built on the GPU that runs it, and this machine has none" in message
    assert "copy the .onnx file there" in message
    assert message.endswith("--flavor rtx --compute-capability 8.6 8.9 12.0")


GPU = Device(0, "NVIDIA Test", "8.6", 1 << 34, 1500.0)


@pytest.mark.parametrize(
    ("flavor", "capabilities", "device", "installed", "expected"),
    [
        ("auto", (), None, {"tensorrt", "rtx"}, "rtx"),
        ("auto", (), GPU, {"tensorrt", "rtx"}, "tensorrt"),
        ("auto", (), GPU, {"rtx"}, "rtx"),
        ("auto", ("8.6",), GPU, {"tensorrt", "rtx"}, "rtx"),
        ("rtx", (), GPU, {"tensorrt", "rtx"}, "rtx"),
        ("tensorrt", (), GPU, {"tensorrt"}, "tensorrt"),
        (
            "tensorrt",
            ("8.6",),
            GPU,
            {"tensorrt"},
            "--compute-capability: a standard engine fits the GPU",
        ),
        ("tensorrt", (), GPU, {"rtx"}, "tensorrt cannot be imported .*; or build for RTX GPUs with TensorRT for RTX"),
        ("auto", (), None, {"tensorrt"}, "tensorrt-rtx cannot be imported .*; it builds engines on any machine"),
        ("auto", (), GPU, set(), "tensorrt-rtx cannot be imported"),
    ],
)
def test_which_library_is_chosen(
    flavor: str, capabilities: tuple[str, ...], device: Device | None, installed: set[str], expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from runtime.backends import BackendError

    def fake(which: str) -> object:
        if which not in installed:
            raise BackendError(f"{'tensorrt-rtx' if which == 'rtx' else which} cannot be imported (no); install it")
        return rtx

    monkeypatch.setattr(trt_library, "find_device", lambda: (device, "no driver"))
    monkeypatch.setattr(trt_library, "import_tensorrt", fake)
    if expected in ("rtx", "tensorrt"):
        assert choose(flavor, capabilities).flavor == expected  # type: ignore[arg-type]
    else:
        with pytest.raises(LibraryError, match=expected):
            choose(flavor, capabilities)  # type: ignore[arg-type]


# The standard flavor's branches, in the library that builds here: the names are the same (test_tensorrt_names).


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # it has no timing caches
def test_settings_of_the_standard_flavor(fixed: tuple[object, Path], tmp_path: Path) -> None:
    standard = Library("tensorrt", rtx, None)
    shape = (1, 192, 224)
    cache = tmp_path / "timing.cache"
    settings = Settings(
        (Profile(shape, shape, shape),),
        workspace_bytes=1 << 30,
        optimization_level=2,
        timing_cache=cache,
        hardware_compatibility="ampere-plus",
    )
    built = build(standard, fixed[1], fixed[1].read_bytes(), settings)
    assert "8.6" in built.compute_capabilities
    assert "7.5" not in built.compute_capabilities
    assert cache.stat().st_size > 0
    assert built.layers == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timing_cache": Path("x")}, "--timing-cache: TensorRT for RTX has no such thing"),
        ({"hardware_compatibility": "ampere-plus"}, "--hardware-compatibility: TensorRT for RTX has no such thing"),
        ({"version_compatible": True}, "--version-compatible: TensorRT for RTX has no such thing"),
        ({"compute_capabilities": ("9.0",)}, "--compute-capability 9.0: TensorRT for RTX builds for 7.5, 8.0, 8.6"),
        ({"compute_capabilities": ()}, "there is no GPU here to build for"),
        ({"optimization_level": 9}, "--optimization-level 9: expected 0 to 5"),
    ],
)
def test_settings_that_rtx_lacks(settings: dict[str, object], message: str) -> None:
    asked = dataclasses.replace(Settings((WHOLE,), ("8.6",)), **settings)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=message):
        build(LIBRARY, Path("model.onnx"), b"", asked)


def test_the_rebuild_command_repeats_the_settings(deployed: dict[Precision, Path], tmp_path: Path) -> None:
    """What the description advises asks for the very settings, through the command's own parser."""
    asked = Settings(
        (Profile((1, 64, 64), (2, 96, 128), (4, 192, 256)), Profile((1, 64, 64), (2, 64, 64), (4, 64, 64))),
        workspace_bytes=3 << 29,
        optimization_level=3,
        hardware_compatibility="same-compute-capability",
        version_compatible=True,
    )
    words = rebuild_command(Library("tensorrt", rtx, None), Path("a b/my model.onnx"), asked, tmp_path / "x y.engine")
    assert words.startswith("python export/to_trt.py 'my model.onnx' -o 'x y.engine' --flavor tensorrt --batch 1 2 4")
    _, manifest = load_deployed(deployed["fp32"])
    options = to_trt._parser().parse_args(
        words.split(" ", 2)[2].replace("'my model.onnx'", "m").replace("'x y.engine'", "e").split()
    )
    assert make_profiles(manifest, options.batch, options.shapes)[0] == asked.profiles[0]
    assert int(options.workspace * (1 << 30)) == asked.workspace_bytes
    assert (options.optimization_level, options.version_compatible) == (3, True)
    assert options.hardware_compatibility == "same-compute-capability"


# Bad input.


def one_line(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 1
    return str(error)


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
    ],
)
def test_bad_options_get_one_line(arguments: list[str], message: str, exported: Exported) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        main([str(exported.model), "--flavor", "rtx", *arguments])
    one_line(caught.value)


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"model\.txt: expected an exported file \(\.onnx\) or a checkpoint"):
        main([str(tmp_path / "model.txt")])
    with pytest.raises(UserError, match="no checkpoint at"):
        main([str(tmp_path / "missing.pt")])


def test_every_parser_error_names_its_node(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(exported.model)
    nodes = [node for node in model.graph.node if node.op_type == "Relu"][:2]
    for node in nodes:
        node.op_type, node.domain = "Unheard", "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    path = restamp(model, tmp_path / "model.onnx")
    with pytest.raises(ParseError, match=r"cannot parse .* of its nodes, the first: node \d+ \(Unheard") as caught:
        main([str(path), "--compute-capability", "8.6"])
    one_line(caught.value)
    assert "Unheard" in capsys.readouterr().err
    assert not (tmp_path / "model.engine").exists()


def test_an_operator_that_parses_and_cannot_be_built(exported: Exported, tmp_path: Path) -> None:
    """TensorRT for RTX parses NonMaxSuppression, and has no implementation: only a build tells."""
    model = onnx.load(exported.model)
    constants = {
        "most": np.array([10], np.int64),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = [
        helper.make_node("Unsqueeze", ["candidate_scores", "one"], ["scores_of_classes"]),
        helper.make_node("NonMaxSuppression", ["candidate_boxes", "scores_of_classes", *constants], ["selected"]),
        helper.make_node("Cast", ["selected"], ["selected_int"], to=TensorProto.INT32),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info("selected_int", TensorProto.INT32, ["n", 3]))
    path = restamp(model, tmp_path / "model.onnx")
    with pytest.raises(BuildError, match=r"TensorRT for RTX .* cannot build it for 8\.6: .") as caught:
        main([str(path), "--compute-capability", "8.6", *SMALL])
    one_line(caught.value)
    assert list(tmp_path.glob("*.engine*")) == []


def test_a_file_that_lies_about_its_precision(exported: Exported, tmp_path: Path) -> None:
    from dataclasses import replace

    from runtime.manifest import METADATA_KEY, from_json, to_json

    model = onnx.load(exported.model)
    text = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    text.value = to_json(replace(from_json(text.value, "test"), precision="fp16"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineBuildError, match=r"says that it is fp16, but its convolutions are: \d+ fp32"):
        main([str(path), "--compute-capability", "8.6"])


def test_int8_for_a_cpu(exported: Exported, tmp_path: Path) -> None:
    model, manifest = load_deployed(exported.model)
    cv2.imwrite(str(tmp_path / "a.png"), synthetic_pictures()[0])
    ranges = calibrate(model, manifest, [tmp_path / "a.png"], progress=False)
    path = tmp_path / "model.onnx"
    path.write_bytes(converted_model(model, manifest, Scheme("int8", "cpu"), ranges).SerializeToString())
    with pytest.raises(EngineBuildError, match=r"its int8 is for CPUs .* --target tensorrt") as caught:
        main([str(path), "--compute-capability", "8.6"])
    one_line(caught.value)


def test_progress_is_of_nested_phases_and_never_falls() -> None:
    phases = Phases(show=False)
    assert phases.fraction() == 0
    phases.start("build", None, 4)
    seen = [phases.fraction()]
    assert phases.step("build", 0)
    phases.start("optimize", "build", 2)
    seen.append(phases.fraction())
    phases.step("optimize", 0)
    phases.start("passes", "optimize", 10)
    phases.step("passes", 4)
    seen.append(phases.fraction())
    assert seen == [0, 0.25, pytest.approx(0.25 * (1 + 0.5 * (1 + 0.5)))]
    phases.finish("passes")
    phases.finish("optimize")
    phases.step("unheard", 3)
    phases.step("build", 3)
    assert phases.fraction() == 1
    phases.is_cancelled = True
    assert not phases.step("build", 3)
    phases.finish("build")
    phases.close()


def test_too_little_disk(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        EngineBuildError, match=r"0 MB are free there, the engine may need \d+; free some space"
    ) as caught:
        main([str(exported.model), "-o", str(tmp_path / "m.engine"), "--compute-capability", "8.6"])
    one_line(caught.value)


def test_a_disk_that_fills_up_while_writing(fixed: tuple[object, Path], repository: Path, tmp_path: Path) -> None:
    """The process may write files of 1 MB at most, which the engine exceeds."""
    shutil.copy(fixed[1], tmp_path / "model.onnx")
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "sys.argv = ['to_trt', 'model.onnx', '--compute-capability', '8.6'];"
        "runpy.run_module('export.to_trt', run_name='__main__')"
    )
    command = subprocess.run(
        [sys.executable, "-c", limited],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert command.returncode == 2
    assert re.fullmatch(r"error: cannot write .*model\.engine: File too large; free some space.*\n", command.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing(
    sent: signal.Signals, fixed: tuple[object, Path], repository: Path, tmp_path: Path
) -> None:
    """An older engine of that name stays as it was."""
    out = tmp_path / "model.engine"
    out.write_bytes(b"older")
    process = subprocess.Popen(
        [sys.executable, "export/to_trt.py", str(fixed[1]), "-o", str(out), "--compute-capability", "8.6"],
        cwd=repository,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert any("profile 0" in line for line in process.stdout)
    time.sleep(0.5)
    process.send_signal(sent)
    if sent == signal.SIGINT:
        assert any("stopping the build; press Ctrl-C again" in line for line in process.stderr)
        process.send_signal(sent)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    assert out.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]


def test_a_build_stops_where_the_library_asks(fixed: tuple[object, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def step(phases: Phases, phase: str, number: int) -> bool:
        steps.append(phase)
        phases.is_cancelled = len(steps) >= 50  # as Ctrl-C does
        return not phases.is_cancelled

    monkeypatch.setattr(Phases, "step", step)
    with pytest.raises(KeyboardInterrupt):
        build_for(fixed[1], "8.6", profile=Profile((1, 192, 224), (1, 192, 224), (1, 192, 224)))
    assert len(steps) >= 50


def test_no_engine_is_written_whose_layers_are_wide(
    deployed: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def built(*_: object) -> object:
        return to_trt.Built(b"vtrt", (), ("8.6",), {"fp32": 60, "fp16": 2}, (), 1.0)

    monkeypatch.setattr(to_trt, "build", built)
    _, manifest = load_deployed(deployed["fp16"])
    with pytest.raises(EngineBuildError, match=r"NOT written.*only 2 of 62 convolutions are fp16 \(2 fp16, 60 fp32\)"):
        build_engine(LIBRARY, deployed["fp16"], manifest, Settings((WHOLE,), ("8.6",)), tmp_path / "m.engine")
    assert list(tmp_path.iterdir()) == []


# Deformable convolutions, as GridSample.


def test_a_deformable_detector_builds(tmp_path: Path) -> None:
    """In float32 and, grid and input sharing no type by themselves, in half precision."""
    model = SYSTEMS["atss_dcn_r50_fpn_1x"]().model
    model = dataclasses.replace(narrowed(model), head=dataclasses.replace(narrowed(model).head, deformable=True))
    loaded = saved(model, Thresholds(), Preprocess(short_side=192, long_side=256), tmp_path / "dcn" / "best.pt")
    source = tmp_path / "dcn.onnx"
    source.write_bytes(export_model(loaded, input_shapes(loaded.config.preprocess, 4)))
    graph, manifest = load_deployed(source)
    assert "GridSample" in {node.op_type for node in graph.graph.node}
    half = tmp_path / "dcn.fp16.onnx"
    half.write_bytes(converted_model(graph, manifest, Scheme("fp16"), None).SerializeToString())
    for path in (source, half):
        header = read_header(build_for(path, "7.5", "12.0", profile=Profile((1, 64, 64), (2, 192, 256), (4, 256, 256))))
        assert header is not None
        assert header.compute_capabilities == ("7.5", "12.0")


@pytest.mark.slow
def test_the_papers_deformable_recipe_builds(tmp_path: Path) -> None:
    recipe = SYSTEMS["atss_dcn_r50_fpn_1x"]()
    model = dataclasses.replace(recipe.model, backbone=dataclasses.replace(recipe.model.backbone, weights="none"))
    loaded = saved(model, recipe.thresholds, recipe.preprocess, tmp_path / "dcn" / "best.pt")
    source = tmp_path / "dcn.onnx"
    source.write_bytes(export_model(loaded, input_shapes(loaded.config.preprocess, 4)))
    assert len(build_for(source, "8.6", profile=Profile((1, 320, 320), (1, 800, 1088), (4, 800, 1344)))) > 1e8
