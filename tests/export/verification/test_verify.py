"""verify passes what was exported and fails what was broken, each part of it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.onnx_model.file import expose_values, keep_outputs
from export.verification.checkpoint import open_export
from export.verification.checks import CANDIDATES, DETECTIONS, NETWORK, RERUN, ROWS, Check, Verification
from export.verification.comparison import VerifyError, compare_case, compare_images
from export.verification.images import load_comparison_images, make_case, make_cases, synthetic_images
from export.verify import main
from runtime.backends import BackendError
from runtime.backends.ort.backend import OrtBackend
from runtime.detections import RawOutputs
from runtime.errors import UserError
from runtime.manifest import METADATA_KEY, InputShapes, Manifest, Preprocess

from ..conftest import Exported, restamp

PAD = (124, 116, 104)


def failing(exported: Exported, model: Path) -> set[str]:
    """Quantities beyond their limit, on one small batch."""
    comparison = open_export(exported.loaded, model)
    checks = compare_case(comparison, make_case(2, (192, 224), synthetic_images(), PAD))
    return {check.quantity for check in checks if not check.passed}


def change_constants(model: onnx.ModelProto, before: float, after: float) -> int:
    """Replace a scalar float constant wherever it stands; how often."""
    changed = 0
    for value in model.graph.initializer:
        array = numpy_helper.to_array(value)
        if array.dtype == np.float32 and array.size == 1 and array.item() == np.float32(before):
            value.CopyFrom(numpy_helper.from_array(np.full_like(array, after), value.name))
            changed += 1
    return changed


def test_passes_what_was_exported(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(exported.checkpoint), str(exported.model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "16 comparisons, none beyond the limit"
    assert {line.split("  ")[0] for line in lines[1:-1]} == {"file", "1 × 192 × 256", "3 × 192 × 128"}


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_changed_weight_fails(which: str, exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    weights = [value for value in model.graph.initializer if len(value.dims) == 4]
    weight = weights[0 if which == "first" else -1]
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 1.05  # one output channel of one convolution, by 5 %
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    failed = failing(exported, restamp(model, tmp_path / "broken.onnx"))
    assert failed & set(NETWORK.values())
    assert not failed & {CANDIDATES, ROWS, RERUN}  # what follows the network is as it was


def test_a_changed_score_threshold_fails(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    assert change_constants(model, 0.05, 0.2)
    assert CANDIDATES in failing(exported, restamp(model, tmp_path / "broken.onnx"))


def test_a_changed_nms_threshold_fails(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    assert change_constants(model, 0.6, 0.5)
    failed = failing(exported, restamp(model, tmp_path / "broken.onnx"))
    assert {ROWS, DETECTIONS} <= failed
    assert not failed & {*NETWORK.values(), CANDIDATES, RERUN}


def test_a_flag_that_lies_fails(exported: Exported, tmp_path: Path) -> None:
    """Nothing suppresses anything, and still the file says that NMS converged."""
    model = onnx.load(exported.model)
    change_constants(model, 0.6, 2.0)
    assert {ROWS, DETECTIONS} <= failing(exported, restamp(model, tmp_path / "broken.onnx"))


def test_nan_fails() -> None:
    assert not Check("", "", 1, float("nan"), 1.0).passed


def test_a_changed_graph_is_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    change_constants(model, 0.6, 0.5)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match="changed after its export"):
        open_export(exported.loaded, path)


def test_another_checkpoint_is_refused(exported: Exported) -> None:
    with pytest.raises(VerifyError, match="exported from another checkpoint"):
        open_export(exported.loaded._replace(sha256="0" * 64), exported.model)


def test_a_rewritten_graph_is_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    del model.graph.value_info[:]
    with pytest.raises(VerifyError, match=r"class_logits_0.*another tool has rewritten it"):
        open_export(exported.loaded, restamp(model, tmp_path / "rewritten.onnx"))


def test_foreign_and_truncated_files(exported: Exported, tmp_path: Path) -> None:
    truncated, foreign = tmp_path / "truncated.onnx", tmp_path / "foreign.onnx"
    truncated.write_bytes(exported.model.read_bytes()[:10_000])
    model = onnx.load(exported.model)
    del model.metadata_props[:]
    foreign.write_bytes(model.SerializeToString())
    for path, message in ((truncated, "cannot open it"), (foreign, "no manifest"), (tmp_path / "no.onnx", "no.onnx")):
        with pytest.raises(BackendError, match=message):
            main([str(exported.checkpoint), str(path)])


def test_report_says_when_nothing_was_detected(capsys: pytest.CaptureFixture[str]) -> None:
    print(Verification((Check("1 × 64 × 64", DETECTIONS, 0, 0.0, 0.01),)).table)
    assert "no detections on these images" in capsys.readouterr().out
    print(Verification((Check("1 × 64 × 64", DETECTIONS, 5, 0.5, 0.01),)).table)
    said = capsys.readouterr().out
    assert "TOO LARGE" in said
    assert "1 comparisons, 1 beyond the limit" in said


def test_cases_use_a_second_batch_and_canvas(exported: Exported) -> None:
    manifest = OrtBackend(exported.model).manifest
    first, second = make_cases(manifest, synthetic_images())
    assert (first.images.shape, second.images.shape) == ((1, 192, 256, 3), (3, 192, 128, 3))
    assert (second.image_sizes <= (192, 128)).all()
    assert (second.image_sizes != (192, 128)).any(axis=1).all()  # a part of the canvas is padding


def described(exported: Exported, inputs: InputShapes, preprocess: Preprocess) -> Manifest:
    return replace(OrtBackend(exported.model).manifest, inputs=inputs, preprocess=preprocess)


def test_the_second_canvas_of_a_large_recipe_is_small(exported: Exported) -> None:
    inputs = InputShapes(1, 16, 64, 1344, 64, 1344)
    manifest = described(exported, inputs, Preprocess(short_side=800, long_side=1333))
    shapes = [case.images.shape[:3] for case in make_cases(manifest, synthetic_images())]
    assert shapes == [(1, 800, 1088), (3, 416, 288)]


def test_a_single_shape_is_compared_once(exported: Exported) -> None:
    preprocess = Preprocess(short_side=192, long_side=256)
    for most, batches in ((1, [1]), (2, [1, 2]), (8, [1, 3])):
        manifest = described(exported, InputShapes(1, most, 192, 192, 256, 256), preprocess)
        cases = make_cases(manifest, synthetic_images())
        assert [case.images.shape[:3] for case in cases] == [(batch, 192, 256) for batch in batches]


def test_file_and_checkpoint_run_once_on_each_batch(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = open_export(exported.loaded, exported.model)
    runs: dict[str, list[int]] = {"file": [], "torch": []}
    backend, reference = comparison.file.backend, comparison.reference
    infer = backend.infer

    def counted(images: np.ndarray, *arguments: np.ndarray, **options: bool) -> RawOutputs:
        runs["file"].append(len(images))
        return infer(images, *arguments, **options)

    monkeypatch.setattr(backend, "infer", counted)
    comparison = comparison._replace(
        reference=lambda case: (runs["torch"].append(len(case.images)), reference(case))[1]
    )
    checks = compare_images(comparison, synthetic_images())
    assert runs == {"file": [1, 3], "torch": [1, 3]}
    assert [check for check in checks if not check.passed] == []
    for case in ("1 × 192 × 256", "3 × 192 × 128"):
        assert sum(check.case == case and check.compared > 0 for check in checks) == 7


def test_images(tmp_path: Path) -> None:
    assert load_comparison_images(None, "") == []
    assert load_comparison_images(None, str(tmp_path / "absent")) == []
    with pytest.raises(UserError, match="no images there"):
        load_comparison_images(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a\.png"):
        load_comparison_images(str(tmp_path))
    assert load_comparison_images(None, str(tmp_path)) == []


def test_one_bad_image_among_good_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((8, 8, 3), np.uint8))
    with caplog.at_level("INFO", "export"):
        assert len(load_comparison_images(str(tmp_path))) == 1
    assert [line for line in caplog.messages if "a.png" in line and line.startswith("warning: skipped")]


def test_images_that_were_not_seen_come_first(tmp_path: Path) -> None:
    """Each image is of its number's grey; a path to a seen one may be spelled otherwise."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((8, 8, 3), number, np.uint8))

    def found(seen: list[Path]) -> list[int]:
        return [int(image[0, 0, 0]) for image in load_comparison_images(None, str(tmp_path), seen)]

    assert found([]) == [0, 1, 2]
    assert found([tmp_path / ".." / tmp_path.name / "0.png", paths[2]]) == [1, 3, 4]
    assert found(paths[1:]) == [0]
    assert found(paths) == [0, 1, 2]  # for want of others


def test_inner_values_become_outputs_and_back(exported: Exported) -> None:
    model = onnx.load(exported.model)
    names = [value.name for value in model.graph.output]
    visible = expose_values(model, ["centerness_4"])
    assert visible is not None
    assert [value.name for value in visible.graph.output] == [*names, "centerness_4"]
    keep_outputs(visible, names)
    assert [value.name for value in visible.graph.output] == names
    assert expose_values(model, ["no_such_value"]) is None
    assert METADATA_KEY in {entry.key for entry in model.metadata_props}
