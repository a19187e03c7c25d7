"""False claims of files, in the manifest and the note of the quantization: each must be refused and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.calibration import Calibration
from export.onnx_model.network import load_deployed
from export.onnx_model.precision import (
    convolution_precisions,
    count_convolutions,
    count_wrong_convolutions,
    read_quantization_note,
)
from export.quantization import qdq
from export.quantization.calibrate import calibrate, list_images
from export.quantization.convert import convert_file, convert_model
from export.quantization.scheme import Scheme
from export.verification.checkpoint import open_export
from export.verification.checks import (
    MANIFEST,
    PRECISION,
)
from export.verification.conversion import open_conversion
from runtime.backends import BackendError
from runtime.manifest import METADATA_KEY, Manifest, Precision, from_json, to_json

from ..conftest import SCHEMES, Exported, restamp
from .test_planted_defects import QUANTIZED, differences, failing


def test_an_unquantized_file_that_claims_int8(exported: Exported, tmp_path: Path) -> None:
    assert PRECISION in failing(exported, claiming("int8", exported.model, tmp_path))


def test_an_int8_file_that_claims_fp16(converted: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    assert PRECISION in failing(exported, claiming("fp16", converted["int8"], tmp_path))


def test_an_fp16_file_that_claims_fp32(converted: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    assert PRECISION in failing(exported, claiming("fp32", converted["fp16"], tmp_path))


def test_a_note_excuses_only_what_was_kept_in_float(
    converted: dict[str, Path], calibration: Calibration, exported: Exported
) -> None:
    model, manifest = load_deployed(exported.model)
    kept = sorted(n for n, kind in convolution_precisions(onnx.load(converted["int8"])).items() if kind == "int8")
    some = convert_model(model, manifest, Scheme("int8"), calibration, kept[:3])
    assert count_wrong_convolutions(some, "int8") == 0
    assert count_convolutions(some)["int8"] == len(kept) - 3
    note = read_quantization_note(some)
    assert note is not None
    assert note.in_float == tuple(kept[:3])
    del some.metadata_props[1:]
    assert count_wrong_convolutions(some, "int8") == 3
    nothing = convert_model(model, manifest, Scheme("int8"), calibration, kept)
    assert count_wrong_convolutions(nothing, "int8") == len(kept)  # quantized in name only


def test_maps_made_in_8_bits(exported: Exported, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that forgets that the output convolutions stay in float; their graph and constants are in order."""
    monkeypatch.setattr(qdq, "must_stay_float", lambda *_: set())
    calibration = calibrate(*load_deployed(exported.model), list_images(images), progress=False)
    for name in QUANTIZED:
        scheme, path = SCHEMES[name], tmp_path / f"{name}.onnx"
        convert_file(exported.model, path, scheme, calibration)
        model = onnx.load(path)
        assert set(count_convolutions(model)) == {"uint8" if scheme.target != "tensorrt" else scheme.precision}
        assert count_wrong_convolutions(model, scheme.precision) == 3 * 5  # of three kinds, on five levels
        opened = open_conversion(exported.model, path)
        assert [check.quantity for check in opened.file_checks if not check.passed] == [PRECISION]


@pytest.mark.parametrize("name", SCHEMES)
def test_maps_rounded_to_8_bits(name: str, converted: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    """A pair before a map, which the comparison of graphs looks through and a checkpoint knows nothing of."""
    model = onnx.load(converted[name])
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.25, np.float32), "map_scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), "map_zero"))
    place, node = next((i, node) for i, node in enumerate(model.graph.node) if node.output[0] == "class_logits_1")
    node.output[0] = "whole"
    for kind, before, after in (("Dequantize", "rounded", "class_logits_1"), ("Quantize", "whole", "rounded")):
        inserted = onnx.helper.make_node(f"{kind}Linear", [before, "map_scale", "map_zero"], [after])
        model.graph.node.insert(place + 1, inserted)
    assert differences(exported, model) == []
    assert count_wrong_convolutions(model, SCHEMES[name].precision) == 1
    comparison = open_export(exported.loaded, restamp(model, tmp_path / "rounded.onnx"))
    assert [check.quantity for check in comparison.file_checks if not check.passed] == [PRECISION]


def test_a_grouped_convolution_in_float8(converted: dict[str, Path]) -> None:
    """Counted wherever it stands: none of these is grouped until it says so."""
    model = onnx.load(converted["fp8"])
    kinds = convolution_precisions(model)
    node = next(node for node in model.graph.node if kinds.get(node.output[0]) == "fp8")
    kept = [x for x in node.attribute if x.name != "group"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("group", 4)])
    assert count_wrong_convolutions(model, "fp8") == 1
    assert count_wrong_convolutions(onnx.load(converted["fp8"]), "fp8") == 0


OTHER_CLAIMS: dict[str, Callable[[Manifest], Manifest]] = {
    "classes": lambda m: replace(m, classes=m.classes[::-1]),
    "category_ids": lambda m: replace(m, category_ids=m.category_ids[::-1]),
    "preprocess.short_side": lambda m: replace(m, preprocess=replace(m.preprocess, short_side=96)),
    "preprocess.divide_large": lambda m: replace(m, preprocess=replace(m.preprocess, divide_large=False)),
    "thresholds.nms_iou": lambda m: replace(m, thresholds=replace(m.thresholds, nms_iou=0.7)),
    "recipe": lambda m: replace(m, recipe="another"),
}
OTHER_EXPORTS: dict[str, Callable[[Manifest], Manifest]] = {
    "inputs.batch_max": lambda m: replace(m, inputs=replace(m.inputs, batch_max=8)),
    "toolkit_version": lambda m: replace(m, toolkit_version="0.0"),
}


@pytest.mark.parametrize("field", [*OTHER_CLAIMS, *OTHER_EXPORTS])
def test_a_conversion_that_says_something_else(
    field: str, converted: dict[str, Path], exported: Exported, tmp_path: Path
) -> None:
    """The graph is in order, and its hash leaves the manifest out."""
    path = restating(converted["int8"], {**OTHER_CLAIMS, **OTHER_EXPORTS}[field], tmp_path)
    wrong = [check for check in open_conversion(exported.model, path).file_checks if not check.passed]
    assert [(check.quantity, check.detail) for check in wrong] == [(MANIFEST, field)]


@pytest.mark.parametrize("field", OTHER_CLAIMS)
def test_an_export_that_says_something_else_than_its_checkpoint(field: str, exported: Exported, tmp_path: Path) -> None:
    path = restating(exported.model, OTHER_CLAIMS[field], tmp_path)
    wrong = [check for check in open_export(exported.loaded, path).file_checks if not check.passed]
    assert [(check.quantity, check.detail) for check in wrong] == [(MANIFEST, field)]


def test_every_wrong_field_is_named(converted: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    path = converted["int8"]
    for field in ("classes", "preprocess.short_side"):
        path = restating(path, OTHER_CLAIMS[field], tmp_path)
    assert open_conversion(exported.model, path).file_checks[1].detail == "classes, preprocess.short_side"


def test_a_conversion_that_was_changed_since_is_refused(
    converted: dict[str, Path], exported: Exported, tmp_path: Path
) -> None:
    model = onnx.load(converted["int8"])
    model.graph.node[0].name += "x"
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(BackendError, match="changed after its export"):
        open_conversion(exported.model, tmp_path / "changed.onnx")


def claiming(precision: Precision, path: Path, folder: Path) -> Path:
    """The file under the name of another precision."""
    return restating(path, lambda manifest: replace(manifest, precision=precision), folder)


def restating(path: Path, change: Callable[[Manifest], Manifest], folder: Path) -> Path:
    """The file with a changed manifest, its hash in order."""
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = to_json(change(from_json(entry.value, "test")))
    out = folder / "claim.onnx"
    out.write_bytes(model.SerializeToString())
    return out
