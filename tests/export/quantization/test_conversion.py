"""Files in other precisions: what they hold, and that they detect what the float32 file detects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from export.calibration import Calibration, CalibrationError
from export.onnx_model.file import graph_sha256
from export.onnx_model.forms import for_processor
from export.onnx_model.network import (
    ModelError,
    cut_network,
    dense_map_names,
    load_deployed,
    postprocessing_nodes,
    replace_network,
)
from export.onnx_model.precision import count_convolutions, read_quantization_note
from export.quantization.convert import ConvertError, convert_file
from export.quantization.scheme import Scheme
from export.verification.checks import CANDIDATES, DETECTIONS, KERNELS, NETWORK, RERUN, ROWS, Check
from export.verification.comparison import compare_case, open_model_file
from export.verification.conversion import open_conversion
from export.verification.images import Case, make_case, synthetic_images
from export.verification.matching import count_unmatched
from export.verification.tolerance import TOLERANCES
from runtime.backends import open_backend
from runtime.detections import Detections, postprocess

from ..conftest import SCHEMES, Exported, restamp

PAD = (124, 116, 104)


def checks_of(exported: Exported, path: Path) -> list[Check]:
    comparison = open_conversion(exported.model, path)
    return [*comparison.file_checks, *compare_case(comparison, make_case(2, (192, 224), synthetic_images(), PAD))]


def test_the_network_is_cut_out_and_put_back(exported: Exported) -> None:
    """Nothing is lost: the joined model has the same nodes and gives the same numbers to the last bit."""
    model, _ = load_deployed(exported.model)
    network = cut_network(model)
    onnx.checker.check_model(network, full_check=True)
    assert [value.name for value in network.graph.input] == ["images"]
    assert [value.name for value in network.graph.output] == dense_map_names(model)
    joined = replace_network(model, network)
    assert sorted(n.SerializeToString() for n in joined.graph.node) == sorted(
        n.SerializeToString() for n in model.graph.node
    )
    assert {value.name for value in joined.graph.initializer} == {value.name for value in model.graph.initializer}


def test_a_network_that_lacks_an_output_is_not_put_back(exported: Exported) -> None:
    model, _ = load_deployed(exported.model)
    network = cut_network(model)
    for node in network.graph.node:
        for i, name in enumerate(node.output):
            if name == "class_logits_1":
                node.output[i] = "renamed"
    with pytest.raises(ValueError, match="lacks class_logits_1, which the postprocessing reads"):
        replace_network(model, network)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_file_is_what_it_says(name: str, converted: dict[str, Path], exported: Exported) -> None:
    model, manifest = load_deployed(converted[name])  # the hash fits
    _, before = load_deployed(exported.model)
    assert manifest == replace(
        before,
        precision=SCHEMES[name].precision,
        sums_fit_16_bits={"int8": False, "int8-cpu": True}.get(name),
        graph_sha256=graph_sha256(model),
        libraries=manifest.libraries,
        ap=None,
    )
    assert before.ap == 0.25  # which was measured on the float32 file
    assert manifest.libraries.keys() >= {"torch", "onnx", "ml_dtypes"}
    last = 3 * 5  # of three kinds, on five levels
    everything = count_convolutions(onnx.load(exported.model)).total()
    expected = {
        "fp16": {"fp16": everything},
        "bf16": {"bf16": everything},
        "int8": {"int8": everything - last, "fp16": last},
        "int8-cpu": {"uint8": everything - last, "fp32": last},
        "fp8": {"fp8": everything - last, "fp16": last},
    }
    assert count_convolutions(model) == expected[name]
    assert [entry.version for entry in model.opset_import] == [22 if name == "bf16" else 21]


@pytest.mark.parametrize("name", SCHEMES)
def test_postprocessing_is_untouched(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """Node for node and constant for constant but for the form, and it reads float32 maps under the same names."""
    exported_graph, manifest = load_deployed(exported.model)
    before = for_processor(exported_graph, manifest.thresholds, SCHEMES[name].processor)
    after = onnx.load(converted[name])
    sides = []
    for model in (before, after):
        rest = postprocessing_nodes(model)
        read = {name for node in rest for name in node.input}
        constants = {v.name: v.SerializeToString() for v in model.graph.initializer if v.name in read}
        sides.append(([node.SerializeToString() for node in rest], constants))
    assert sides[0] == sides[1]
    types = {value.name: value.type.tensor_type.elem_type for value in after.graph.value_info}
    assert {types[name] for name in dense_map_names(after)} == {TensorProto.FLOAT}
    assert list(after.graph.output) == list(before.graph.output)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_precision_passes(name: str, converted: dict[str, Path], exported: Exported) -> None:
    checks = checks_of(exported, converted[name])
    assert [check for check in checks if not check.passed] == []
    # The best 100 scores of an untrained detector are too much alike for 8 bits to keep their order.
    few = (DETECTIONS, KERNELS) if SCHEMES[name].is_quantized else ()
    assert all(check.compared for check in checks if check.quantity not in few)


def test_more_bits_err_less(converted: dict[str, Path], full_bits: Path, exported: Exported) -> None:
    errors = {
        name: max(check.worst for check in checks_of(exported, path) if check.quantity in NETWORK.values())
        for name, path in (converted | {"int8-cpu-vnni": full_bits}).items()
    }
    assert 0 < 4 * errors["fp16"] < errors["bf16"] < errors["int8"] < errors["fp8"]
    # The layouts round at different places; for CPUs, a step of weights is up to twice as wide where sums must fit.
    assert errors["bf16"] < errors["int8-cpu-vnni"] < errors["int8-cpu"] < errors["fp8"]


@pytest.mark.parametrize("name", ["fp16", "int8", "int8-cpu"])
def test_one_file_serves_all_batches_and_canvases(name: str, converted: dict[str, Path], exported: Exported) -> None:
    comparison = open_conversion(exported.model, converted[name])
    for batch, canvas_hw in ((1, (64, 96)), (5, (192, 160)), (1, (320, 64))):
        checks = compare_case(comparison, make_case(batch, canvas_hw, synthetic_images(), PAD))
        assert [c for c in checks if not c.passed and c.quantity in (CANDIDATES, ROWS, RERUN)] == []
        assert all(np.isfinite(check.worst) for check in checks)


@pytest.mark.parametrize("name", ["fp16", "int8", "int8-cpu"])
def test_batch_equals_singles(name: str, converted: dict[str, Path]) -> None:
    backend = open_model_file(converted[name]).backend
    case = make_case(3, (192, 256), synthetic_images(), PAD)
    together = backend.infer(case.images, case.image_sizes)
    for i in range(3):
        alone = backend.infer(case.images[i : i + 1], case.image_sizes[i : i + 1])
        np.testing.assert_allclose(alone.detection_scores[0], together.detection_scores[i], atol=5e-3)


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_openvino_detects_the_same(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """An independent reader of the same file; in 8 bits see test_trained.py, an untrained detector amplifies those."""
    pytest.importorskip("openvino")
    path = exported.model if name == "fp32" else converted[name]
    case = make_case(2, (192, 256), synthetic_images(), PAD)
    ours, theirs = (detections_by(runtime, path, case) for runtime in ("cpu", "openvino"))
    assert sum(map(len, ours)) > 100
    for a, b in zip(ours, theirs, strict=True):
        assert count_unmatched(a, b, TOLERANCES[name].same) + count_unmatched(b, a, TOLERANCES[name].same) <= 1


def detections_by(runtime: str, path: Path, case: Case) -> list[Detections]:
    backend = open_backend(path, backend=runtime, threads=1)
    return postprocess(backend.infer(case.images, case.image_sizes), backend.manifest.thresholds)


def test_the_note_of_a_quantization(converted: dict[str, Path], calibration: Calibration) -> None:
    note = read_quantization_note(onnx.load(converted["int8-cpu"]))
    assert note is not None
    assert (note.target, note.method, note.images, note.in_float) == ("cpu", "max", 3, ())
    assert note.images_sha256 == calibration.images_sha256
    assert read_quantization_note(onnx.load(converted["fp16"])) is None
    model = onnx.load(converted["int8"])
    model.metadata_props[1].value = json.dumps({"target": "cpu"})
    assert read_quantization_note(model) is None


def test_conversions_that_make_no_sense(exported: Exported, calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="int8 needs a calibration"):
        convert_file(exported.model, tmp_path / "out.onnx", Scheme("int8"))
    with pytest.raises(ConvertError, match="that already"):
        convert_file(exported.model, tmp_path / "out.onnx", Scheme("fp32"))
    with pytest.raises(CalibrationError, match="made of another graph"):
        convert_file(exported.model, tmp_path / "out.onnx", Scheme("int8"), replace(calibration, graph_sha256="0" * 64))


def test_a_weight_beyond_float16_is_named(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.model)
    weight = next(v for v in model.graph.initializer if len(v.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    path = restamp(model, tmp_path / "large.onnx")
    with pytest.raises(ModelError, match=rf"{weight.name} holds 1e\+05, beyond the range of fp16; use bf16"):
        convert_file(path, tmp_path / "out.onnx", Scheme("fp16"))
    convert_file(path, tmp_path / "out.onnx", Scheme("bf16"))
