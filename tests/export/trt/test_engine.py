"""Engines of TensorRT for RTX, really built on a CPU; the standard flavor's branches; what can't be built."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.console import log_to_console
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.network import load_deployed
from export.quantization.convert import convert_model
from export.quantization.scheme import Scheme
from export.to_trt import main, make_parser
from export.trt import build as trt_build
from export.trt import engine
from export.trt.build import BuildResult, ParseError
from export.trt.engine import build_engine_file, load_source, rebuild_command
from export.trt.library import Library
from export.trt.profiles import make_profiles
from export.trt.settings import BuildError, Settings, check_settings
from export.verification.engine_header import header_problems, read_header
from runtime.backends.engine_file import Profile, read_engine, this_platform
from runtime.cuda import Device
from runtime.files import sha256_file
from runtime.manifest import METADATA_KEY, Precision, from_json, to_json
from train.config.paper_recipes import SYSTEMS

from ...support.rtx import LIBRARY, SMALL, WHOLE, build_for, one_line, rtx
from ...support.systems import saved
from ..conftest import Exported, restamp, sort_nodes


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
    described = build_engine_file(LIBRARY, load_source(source), Settings((WHOLE,), capabilities), out)
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
    with pytest.raises(BuildError, match=f"{precision} needs {needs} or later"):
        check_settings(LIBRARY, Settings((WHOLE,), ("12.0", capability)), precision)
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


# Deformable convolutions, as GridSample.


def test_a_deformable_detector_builds(deformable: tuple[object, Path], tmp_path: Path) -> None:
    """In float32 and, grid and input sharing no type by themselves, in half precision."""
    graph, manifest = load_deployed(deformable[1])
    assert "GridSample" in {node.op_type for node in graph.graph.node}
    half = tmp_path / "model.fp16.onnx"
    half.write_bytes(convert_model(graph, manifest, Scheme("fp16"), None).SerializeToString())
    for path in (deformable[1], half):
        header = read_header(build_for(path, "7.5", "12.0", profile=Profile((1, 64, 64), (2, 192, 256), (3, 256, 256))))
        assert header is not None
        assert header.compute_capabilities == ("7.5", "12.0")


@pytest.mark.slow
def test_the_papers_deformable_recipe_builds(tmp_path: Path) -> None:
    recipe = SYSTEMS["atss_dcn_r50_fpn_1x"]()
    model = dataclasses.replace(recipe.model, backbone=dataclasses.replace(recipe.model.backbone, weights="none"))
    loaded = saved(model, recipe.thresholds, recipe.preprocess, tmp_path / "dcn" / "best.pt")
    source = tmp_path / "dcn.onnx"
    source.write_bytes(checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 4)))
    assert len(build_for(source, "8.6", profile=Profile((1, 320, 320), (1, 800, 1088), (4, 800, 1344)))) > 1e8


# The standard flavor's branches, in the library that builds here: the names are the same (test_tensorrt_names).


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # it has no timing caches
def test_settings_of_the_standard_flavor(
    fixed: tuple[object, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standard = Library("tensorrt", rtx, None)
    shape = (1, 192, 224)
    settings = Settings(
        (Profile(shape, shape, shape),),
        workspace_bytes=1 << 30,
        optimization_level=2,
        timing_cache=tmp_path / "timing.cache",
        hardware_compatibility="ampere-plus",
    )
    with log_to_console():
        described = build_engine_file(standard, load_source(fixed[1]), settings, tmp_path / "model.engine")
    assert "8.6" in described.compute_capabilities
    assert "7.5" not in described.compute_capabilities
    assert described.layers == {}
    assert re.search(r"^warning: .* nobody checked that they are fp32; .*$", capsys.readouterr().err, re.MULTILINE)
    assert (tmp_path / "timing.cache").stat().st_size > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timing_cache": Path("x")}, "--timing-cache: TensorRT for RTX has no such option"),
        ({"hardware_compatibility": "ampere-plus"}, "--hardware-compatibility: TensorRT for RTX has no such option"),
        ({"version_compatible": True}, "--version-compatible: TensorRT for RTX has no such option"),
        ({"compute_capabilities": ("9.0",)}, "--compute-capability 9.0: TensorRT for RTX builds for 7.5, 8.0, 8.6"),
        ({"optimization_level": 9}, "--optimization-level 9: expected 0 to 5"),
    ],
)
def test_settings_that_rtx_lacks(settings: dict[str, object], message: str) -> None:
    asked = dataclasses.replace(Settings((WHOLE,), ("8.6",)), **settings)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=message):
        check_settings(LIBRARY, asked, "fp32")


def test_float32_is_not_tf32(fixed: tuple[object, Path]) -> None:
    """Which keeps 10 bits of mantissa, and which TensorRT takes for float32 unless told otherwise."""
    asked = []

    class Builder:
        """The library's, but it builds nothing and notes what it was asked for."""

        def __init__(self, logger: Any) -> None:
            self._builder = rtx.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def build_serialized_network(self, network: Any, builder_config: Any) -> None:
            asked.append(builder_config.get_flag(rtx.BuilderFlag.TF32))

    recording = SimpleNamespace(**{**vars(rtx), "Builder": Builder})
    shape = (1, 192, 224)
    settings = Settings((Profile(shape, shape, shape),), ("8.6",))
    with pytest.raises(BuildError, match="it gives no reason"):
        trt_build.build(Library("rtx", recording, None), fixed[1], fixed[1].read_bytes(), settings)
    assert asked == [False]
    assert rtx.Builder(rtx.Logger()).create_builder_config().get_flag(rtx.BuilderFlag.TF32)


def test_an_engine_that_its_own_gpu_refuses_is_an_error(fixed: tuple[object, Path]) -> None:
    """Which the library does here whatever the engine, for want of a driver. One for other GPUs isn't tried."""
    library = dataclasses.replace(LIBRARY, device=Device(0, "a GPU", "8.6", 1 << 33, 1800))
    shape = (1, 192, 224)
    profiles = (Profile(shape, shape, shape),)
    model = fixed[1].read_bytes()
    assert trt_build.build(library, fixed[1], model, Settings(profiles, ("12.0",))).layers == {}
    with pytest.raises(BuildError, match=r"cannot deserialize the engine on the GPU that .*: \S.*cudaError") as caught:
        trt_build.build(library, fixed[1], model, Settings(profiles, ("8.6", "12.0")))
    one_line(caught.value)


def test_no_gpu_to_build_for(fixed: tuple[object, Path]) -> None:
    with pytest.raises(BuildError, match="there is no GPU here to build for; name the GPUs that will run the engine"):
        build_for(fixed[1])


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
    assert words.startswith("python -m export.to_trt 'my model.onnx' -o 'x y.engine' --flavor tensorrt --batch 1 2 4")
    _, manifest = load_deployed(deployed["fp32"])
    options = make_parser().parse_args(shlex.split(words)[3:])
    assert make_profiles(manifest, options.batch, options.shapes)[0] == asked.profiles[0]
    assert int(options.workspace * (1 << 30)) == asked.workspace_bytes
    assert (options.optimization_level, options.version_compatible) == (3, True)
    assert options.hardware_compatibility == "same-compute-capability"


# What can't be built.


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
        helper.make_node("Unsqueeze", ["scores", "one"], ["scores_of_classes"]),
        helper.make_node("NonMaxSuppression", ["candidate_boxes", "scores_of_classes", *constants], ["selected"]),
        helper.make_node("Cast", ["selected"], ["selected_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["selected_float"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "least"], ["part"]),
        helper.make_node("Add", ["scores", "part"], ["candidate_scores"]),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    (last,) = (node for node in model.graph.node if "candidate_scores" in node.output)
    last.output[0] = "scores"
    model.graph.node.extend(nodes)
    sort_nodes(model)
    path = restamp(model, tmp_path / "model.onnx")
    with pytest.raises(BuildError, match=r"TensorRT for RTX .* cannot build it for 8\.6: .") as caught:
        main([str(path), "--compute-capability", "8.6", *SMALL])
    one_line(caught.value)
    assert list(tmp_path.glob("*.engine*")) == []


def test_a_file_that_lies_about_its_precision(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    text = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    text.value = to_json(dataclasses.replace(from_json(text.value, "test"), precision="fp16"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=r"says that it is fp16, but its convolutions are: \d+ fp32"):
        main([str(path), "--compute-capability", "8.6"])


def test_int8_for_a_cpu(converted: dict[str, Path]) -> None:
    with pytest.raises(BuildError, match=r"its int8 is for CPUs .* --target tensorrt") as caught:
        load_source(converted["int8-cpu"])
    one_line(caught.value)


def test_no_engine_is_written_whose_layers_are_wide(
    deployed: dict[Precision, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def built(*_: object) -> object:
        return BuildResult(b"vtrt", (), ("8.6",), {"fp32": 60, "fp16": 2}, b"", (), 1.0)

    monkeypatch.setattr(engine, "build", built)
    source = load_source(deployed["fp16"])
    with pytest.raises(BuildError, match=r"NOT written.*only 2 of 62 convolutions are fp16 \(60 fp32, 2 fp16\)"):
        build_engine_file(LIBRARY, source, Settings((WHOLE,), ("8.6",)), tmp_path / "m.engine")
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(BuildError, match=r"0 MB are free there, the engine may need \d+; free some space") as caught:
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
