"""The export: one file for many shapes that describes itself, and clear words for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import export_step
from export.arguments import ArgumentError
from export.graph.deployable import fold, graph_canvases
from export.graph.shapes import ExportError, input_shapes
from export.onnx_model.file import graph_sha256
from export.to_onnx import main
from export.verification.checkpoint import open_export
from export.verification.comparison import compare_case
from export.verification.images import make_case, synthetic_images
from runtime.backends.onnx_file import OUTPUT_NAMES
from runtime.backends.ort.backend import OrtBackend
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.files import sha256_file
from runtime.manifest import METADATA_KEY, InputShapes, Preprocess, Thresholds
from train.checkpoint import LoadedDetector
from train.config import Anchors

from .conftest import Exported

PAD = (124, 116, 104)


def test_the_command_reports_and_says_nothing_else(exported: Exported) -> None:
    lines = exported.command.stdout.splitlines()
    assert exported.command.stderr == ""
    assert lines[0].startswith("exporting canvases 64×64 to 1344×1344, batch 1-16")
    assert lines[-2].endswith("comparisons, none beyond the limit")
    assert lines[-1].startswith(f"{exported.model}  ")
    assert sorted(path.name for path in exported.model.parent.iterdir() if "tmp" in path.name) == []


def test_the_file_describes_itself(exported: Exported) -> None:
    manifest = OrtBackend(exported.model).manifest
    settings = exported.loaded.config
    assert manifest.classes == ("circle", "square", "star")
    assert manifest.category_ids == (1, 2, 7)
    assert manifest.preprocess == settings.preprocess
    assert manifest.thresholds == settings.thresholds
    assert manifest.precision == "fp32"
    assert manifest.recipe == "test"
    assert manifest.ap == 0.25
    assert manifest.checkpoint_sha256 == sha256_file(exported.checkpoint)
    assert manifest.libraries["torch"] == torch.__version__.split("+")[0]


def test_the_hash_is_of_the_graph_without_its_metadata(exported: Exported) -> None:
    model = onnx.load(exported.model)
    stated = OrtBackend(exported.model).manifest.graph_sha256
    assert stated == graph_sha256(model)
    model.metadata_props.add(key="note", value="x")
    assert stated == graph_sha256(model)
    model.graph.node[0].name += "x"
    assert stated != graph_sha256(model)


def test_the_file_keeps_to_the_contract(exported: Exported) -> None:
    model = onnx.load(exported.model)
    assert [value.name for value in model.graph.input] == ["images", "image_sizes"]
    assert [value.name for value in model.graph.output] == OUTPUT_NAMES
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"NonMaxSuppression", "Loop", "If", "Scan", "NonZero", "BatchNormalization"}
    assert "InstanceNormalization" in operators  # a group normalization, as CPUs run it
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    ranks = [constants[node.input[1]].item() for node in model.graph.node if node.op_type == "TopK"]
    assert max(ranks) <= 3840


def test_the_file_holds_no_path_of_this_machine(exported: Exported, repository: Path) -> None:
    content = exported.model.read_bytes()
    assert str(repository).encode() not in content
    assert str(exported.checkpoint.parent).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize(
    ("batch", "canvas_hw"),
    [(16, (64, 64)), (2, (192, 160)), (16, (320, 320)), (1, (320, 1344)), (1, (1344, 320)), (3, (352, 608))],
)
def test_one_file_serves_all_batches_and_canvases(batch: int, canvas_hw: tuple[int, int], exported: Exported) -> None:
    check_shape(batch, canvas_hw, exported)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "canvas_hw"), [(16, (1344, 1344)), (16, (320, 1344)), (7, (1312, 992))])
def test_one_file_serves_the_largest(batch: int, canvas_hw: tuple[int, int], exported: Exported) -> None:
    check_shape(batch, canvas_hw, exported)


@pytest.mark.slow
def test_one_file_serves_every_side(exported: Exported) -> None:
    for side in range(64, 1345, 32):
        check_shape(1, (side, 320), exported)
        check_shape(2, (320, side), exported)


def check_shape(batch: int, canvas_hw: tuple[int, int], exported: Exported) -> None:
    comparison = open_export(exported.loaded, exported.model)
    checks = compare_case(comparison, make_case(batch, canvas_hw, synthetic_images(), PAD))
    assert [check for check in checks if not check.passed] == []
    assert all(check.compared for check in checks)


def test_every_side_has_a_map_of_its_own_in_a_batch(exported: Exported) -> None:
    """Batch equals singles: what else is in the batch changes nothing."""
    backend = OrtBackend(exported.model)
    case = make_case(3, (192, 256), synthetic_images(), PAD)
    together = backend.infer(case.images, case.image_sizes)
    for i in range(3):
        alone = backend.infer(case.images[i : i + 1], case.image_sizes[i : i + 1])
        np.testing.assert_array_equal(alone.detection_classes[0], together.detection_classes[i])
        np.testing.assert_allclose(alone.detection_boxes[0], together.detection_boxes[i], atol=1e-2)


def test_boxes_are_clipped_to_the_image(exported: Exported) -> None:
    images = np.full((1, 192, 256, 3), 90, np.uint8)
    raw = OrtBackend(exported.model).infer(images, np.array([[100, 130]], np.int32))
    assert raw.candidate_boxes[0].max(axis=0).tolist() == [130, 100, 130, 100]
    assert raw.candidate_boxes.min() == 0


def test_the_runtime_detects_with_it(exported: Exported) -> None:
    with Detector(exported.model) as detector:
        found = detector.detect(synthetic_images())
    assert [len(image) for image in found] == [100, 100, 100]


def test_a_fixed_canvas(fixed: tuple[LoadedDetector, Path]) -> None:
    loaded, path = fixed
    comparison = open_export(loaded, path)
    assert comparison.file.backend.manifest.inputs == InputShapes(1, 1, 192, 192, 224, 224)
    images = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_value for axis in images] == [1, 192, 224, 3]
    checks = compare_case(comparison, make_case(1, (192, 224), synthetic_images(), PAD))
    assert [check for check in checks if not check.passed] == []
    raw = comparison.file.backend.infer(np.zeros((1, 192, 224, 3), np.uint8), np.array([[192, 224]], np.int32))
    # Levels of 24 × 28, 12 × 14, 6 × 7 and 3 × 4 cells, 3 classes, at most 1000 of each.
    assert raw.candidate_scores.shape == (1, 1000 + 504 + 126 + 36)


def test_ranges_serve_every_canvas() -> None:
    nine = Anchors(scales_per_octave=3, ratios=(0.5, 1.0, 2.0))
    canvases = graph_canvases(InputShapes(1, 1, 64, 320, 64, 320), 5, nine, Thresholds())
    assert [tuple(level) for level in canvases.ranges] == [(576, 14400), (144, 3600), (36, 900), (9, 225), (9, 81)]
    canvases = graph_canvases(InputShapes(1, 1, 320, 320, 640, 640), 5, Anchors(), Thresholds())
    assert [tuple(level) for level in canvases.ranges] == [(n, n) for n in (3200, 800, 200, 50, 15)]
    with pytest.raises(UserError, match=r"TensorRT ranks at most 3840: set thresholds.candidates_per_level to 1000"):
        graph_canvases(InputShapes(1, 1, 64, 64, 64, 64), 5, Anchors(), Thresholds(candidates_per_level=4000))


def test_folding_changes_no_number(exported: Exported) -> None:
    images = torch.from_numpy(make_case(2, (192, 256), synthetic_images(), PAD).images)
    with torch.inference_mode():
        expected, folded = exported.loaded.detector(images), fold(exported.loaded.detector)(images)
    for kind, other in zip(expected, folded, strict=True):
        for a, b in zip(kind, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    norms = [m for m in exported.loaded.detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms  # the detector itself keeps its own


def test_a_file_that_differs_is_not_exported(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight changes on the way to the file; the file that stood there before stays."""
    model = onnx.load(exported.model)
    weight = next(value for value in model.graph.initializer if len(value.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    fields = json.loads(entry.value)
    entry.value = json.dumps({**fields, "graph_sha256": graph_sha256(model)})
    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: model.SerializeToString())
    out = tmp_path / "model.onnx"
    out.write_text("what stood there before")
    arguments = [str(exported.checkpoint), "-o", str(out)]
    assert main(arguments) == 1
    assert out.read_text() == "what stood there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.failed.onnx", "model.onnx"]
    said = capsys.readouterr().out
    assert "TOO LARGE" in said
    assert "NOT written" in said

    monkeypatch.setattr(export_step, "checkpoint_to_graph", lambda *_: exported.model.read_bytes())
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_bytes() == exported.model.read_bytes()


PRE = Preprocess(short_side=192, long_side=256)


@pytest.mark.parametrize(
    ("batch_max", "canvas_hw", "message"),
    [
        (0, None, "--batch-max 0: expected 1 to 1024"),
        (4, (190, 224), "--canvas 190 224: expected height and width in multiples of 32"),
        (4, (0, 224), "multiples of 32"),
        (4, (160, 256), "--canvas 160 256: images are resized to a shorter side of 192 px .* at least 192"),
    ],
)
def test_impossible_shapes(batch_max: int, canvas_hw: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        input_shapes(PRE, batch_max, canvas_hw)


def test_shapes() -> None:
    assert input_shapes(PRE, 16) == InputShapes(1, 16, 64, 1344, 64, 1344)
    assert input_shapes(replace(PRE, short_side=1000, long_side=1666), 2).height_max == 1696
    assert input_shapes(PRE, 1, (192, 256)) == InputShapes(1, 1, 192, 192, 256, 256)
    assert input_shapes(PRE, 4, (192, 256)).summary() == "canvas 192×256 (height × width), batch 1-4"


def test_bad_input_gets_one_line(checkpoint: Path, tmp_path: Path) -> None:
    foreign, truncated, file = tmp_path / "foreign.pt", tmp_path / "truncated.pt", tmp_path / "file"
    torch.save({"state_dict": {}}, foreign)
    truncated.write_bytes(checkpoint.read_bytes()[:5000])
    file.write_text("")
    for arguments, message in (
        ([str(tmp_path / "missing.pt")], "no checkpoint at"),
        ([str(foreign)], "no checkpoint of this toolkit"),
        ([str(truncated)], "can't be read as a checkpoint"),
        ([str(checkpoint), "-o", "model.engine"], "-o model.engine: expected a name that ends in .onnx"),
        ([str(tmp_path / "a.onnx")], "is the checkpoint itself"),
        ([str(checkpoint), "--images", str(tmp_path)], "no images there"),
        ([str(checkpoint), "-o", str(file / "model.onnx")], "cannot write"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            main(arguments)
        assert len(str(caught.value).splitlines()) == 1
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    with pytest.raises(ArgumentError, match="that is a folder"):
        main([str(checkpoint), "-o", str(folder)])


def test_the_command_shows_no_traceback(repository: Path, tmp_path: Path) -> None:
    command = subprocess.run(
        [sys.executable, str(repository / "export" / "to_onnx.py"), str(tmp_path / "missing.pt")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert command.returncode == 2
    assert command.stderr.startswith("error: no checkpoint at")
    assert command.stderr.count("\n") == 1
    assert command.stdout == ""
