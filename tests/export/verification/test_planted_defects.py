"""Defects planted into the graphs and ranges of converted files: each must be refused, and for the right reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, numpy_helper

from export.calibration import Calibration
from export.onnx_model.network import cut_network, load_deployed
from export.quantization.convert import convert_file
from export.quantization.scheme import Scheme
from export.verification.checkpoint import open_export
from export.verification.checks import (
    DETECTIONS,
    NETWORK,
    PRECISION,
    RANGES,
    SAME_NETWORK,
    UNFIT,
    Verification,
)
from export.verification.comparison import VerifyError, compare_case
from export.verification.conversion import open_conversion
from export.verification.equivalence import network_differences
from export.verification.images import make_case, synthetic_images
from export.verify import main

from ..conftest import SCHEMES, Exported, restamp, sort_nodes

PAD = (124, 116, 104)
QUANTIZED = [name for name, scheme in SCHEMES.items() if scheme.is_quantized]


def failing(exported: Exported, path: Path) -> set[str]:
    """What doesn't pass, on one small batch."""
    comparison = open_conversion(exported.model, path)
    checks = [*comparison.file_checks, *compare_case(comparison, make_case(2, (192, 224), synthetic_images(), PAD))]
    return {check.quantity for check in checks if not check.passed}


def differences(exported: Exported, model: onnx.ModelProto) -> list[str]:
    """How the model's network differs from the exported file's."""
    source, manifest = load_deployed(exported.model)
    return network_differences(source, model, manifest.thresholds)


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a constant in place, its type stays."""
    value = next(value for value in model.graph.initializer if value.name == name)
    array = np.asarray(numpy_helper.to_array(value))
    value.raw_data = change(array.astype(np.float32)).astype(array.dtype).tobytes()


def some_convolution(model: onnx.ModelProto) -> NodeProto:
    """One in the middle of the network."""
    nodes = [node for node in cut_network(model).graph.node if node.op_type == "Conv"]
    return nodes[len(nodes) // 2]


def weight_of(model: onnx.ModelProto, node: NodeProto) -> tuple[str, str]:
    """Names of the constants that hold a convolution's numbers and that scale them: one and the same in half types."""
    producer = {name: other for other in model.graph.node for name in other.output}
    dequantize = producer.get(node.input[1])
    return (node.input[1],) * 2 if dequantize is None else (dequantize.input[0], dequantize.input[1])


def swap_outputs(model: onnx.ModelProto, one: str, other: str) -> None:
    swap = {one: other, other: one}
    for node in model.graph.node:
        for i, output in enumerate(node.output):
            node.output[i] = swap.get(output, output)


# What needs no image.


@pytest.mark.parametrize("name", SCHEMES)
def test_nothing_is_found_where_nothing_is_wrong(name: str, converted: dict[str, Path], exported: Exported) -> None:
    assert differences(exported, onnx.load(converted[name])) == []


@pytest.mark.parametrize("name", SCHEMES)
def test_doubled_weights(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """One convolution's numbers, or its scales, are twice what they were."""
    model = onnx.load(converted[name])
    _, scale = weight_of(model, some_convolution(model))
    changed(model, scale, lambda array: 2 * array)
    (found,) = differences(exported, model)
    assert found.startswith(scale.removesuffix("_scale").removesuffix(f"_{name}"))


@pytest.mark.parametrize("name", SCHEMES)
def test_zeroed_weights(name: str, converted: dict[str, Path], exported: Exported) -> None:
    model = onnx.load(converted[name])
    numbers, _ = weight_of(model, some_convolution(model))
    changed(model, numbers, np.zeros_like)
    (found,) = differences(exported, model)
    assert "numbers differ by more than rounding" in found


def test_weights_that_were_cut_and_not_rounded(converted: dict[str, Path], exported: Exported) -> None:
    """The limit is half of the last bit, so that even this is seen."""
    source, model = onnx.load(exported.model), onnx.load(converted["bf16"])
    name, _ = weight_of(model, some_convolution(model))
    exact = next(v for v in source.graph.initializer if v.name == name.removesuffix("_bf16"))
    words = numpy_helper.to_array(exact).view(np.uint32) & 0xFFFF0000
    next(v for v in model.graph.initializer if v.name == name).raw_data = (words >> 16).astype(np.uint16).tobytes()
    assert len(differences(exported, model)) == 1


@pytest.mark.parametrize("name", SCHEMES)
def test_swapped_levels(name: str, converted: dict[str, Path], exported: Exported) -> None:
    for kind in ("class_logits", "box_regression", "centerness"):
        for one, other in ((0, 2), (3, 4)):
            model = onnx.load(converted[name])
            swap_outputs(model, f"{kind}_{one}", f"{kind}_{other}")
            assert differences(exported, model)


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_swapped_levels_of_one_size(
    name: str, converted: dict[str, Path], exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the smallest canvas the last two have one cell each: the file runs, and 8 bits err more than they differ."""
    model = onnx.load(converted[name])
    swap_outputs(model, "class_logits_3", "class_logits_4")
    sort_nodes(model)
    comparison = open_conversion(exported.model, restamp(model, tmp_path / "swapped.onnx"))
    smallest = compare_case(comparison, make_case(2, (64, 64), synthetic_images(), PAD))
    assert {check.quantity for check in smallest if not check.passed} <= {*NETWORK.values(), DETECTIONS}
    assert [check.quantity for check in comparison.file_checks if not check.passed] == [SAME_NETWORK]
    print(Verification(tuple(comparison.file_checks)).table)
    said = capsys.readouterr().out.splitlines()
    assert said[3].endswith("TOO LARGE")
    assert said[4].strip() == comparison.file_checks[-1].detail != ""  # where it differs


@pytest.mark.parametrize("name", SCHEMES)
def test_swapped_weights(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """Two convolutions of equal shape read each other's."""
    model = onnx.load(converted[name])
    shapes = {v.name: list(v.dims) for v in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    first = next(node for node in nodes if "class_tower" in node.input[1])
    second = next(node for node in nodes if "box_tower" in node.input[1])
    assert shapes[weight_of(model, first)[0]] == shapes[weight_of(model, second)[0]]
    first.input[1], second.input[1] = second.input[1], first.input[1]
    assert differences(exported, model)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_scale_undone_by_another(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """DequantizeLinear multiplies by twice what QuantizeLinear divided by."""
    model = onnx.load(converted[name])
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in quantized)
    scale = numpy_helper.to_array(next(v for v in model.graph.initializer if v.name == node.input[1]))
    model.graph.initializer.append(numpy_helper.from_array(2 * scale, "another"))
    node.input[1] = "another"
    assert differences(exported, model)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("axis", [None, 1])
def test_scales_along_another_axis(
    name: str, axis: int | None, converted: dict[str, Path], exported: Exported, tmp_path: Path
) -> None:
    """Of a weight with as many inputs as outputs each input channel gets an output's scale; 1 is ONNX's default."""
    model = onnx.load(converted[name])
    shapes = {value.name: list(value.dims) for value in model.graph.initializer}
    node = next(
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and len(shape := shapes.get(node.input[0], [])) == 4
        and shape[0] == shape[1] > 1
    )
    del node.attribute[:]
    if axis is not None:
        node.attribute.append(onnx.helper.make_attribute("axis", axis))
    (found,) = differences(exported, model)
    assert "along axis 1, not one for each output channel" in found
    assert SAME_NETWORK in failing(exported, restamp(model, tmp_path / "axis.onnx"))  # which does run


@pytest.mark.parametrize("name", QUANTIZED)
def test_too_few_scales(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """Said, not tripped over."""
    model = onnx.load(converted[name])
    _, scale = weight_of(model, some_convolution(model))
    value = next(value for value in model.graph.initializer if value.name == scale)
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value)[:-1], scale))
    (found,) = differences(exported, model)
    assert "not one for each output channel" in found


def test_a_pair_with_a_form_of_its_own(converted: dict[str, Path], exported: Exported) -> None:
    """As files of earlier versions have it: the postprocessing of both is the same, and no form of today's."""
    source, manifest = load_deployed(exported.model)
    model = onnx.load(converted["int8-cpu"])
    for graph in (source.graph, model.graph):
        for node in graph.node:
            if node.name.startswith("nms/"):
                node.name = f"old_{node.name}"
    assert network_differences(source, model, manifest.thresholds) == []
    assert differences(exported, model) == ["the postprocessing differs"]


@pytest.mark.parametrize("name", SCHEMES)
def test_another_postprocessing(name: str, converted: dict[str, Path], exported: Exported) -> None:
    model = onnx.load(converted[name])
    for value in model.graph.initializer:
        if value.data_type == TensorProto.FLOAT and not value.dims and numpy_helper.to_array(value) == np.float32(0.6):
            value.CopyFrom(numpy_helper.from_array(np.array(0.5, np.float32), value.name))
    assert differences(exported, model) == ["the postprocessing differs"]


@pytest.mark.parametrize("attribute", ["strides", "group"])
def test_another_attribute(attribute: str, converted: dict[str, Path], exported: Exported) -> None:
    model = onnx.load(converted["fp16"])
    node = some_convolution(model)
    theirs = next(other for other in model.graph.node if other.output == node.output)
    kept = [x for x in theirs.attribute if x.name != attribute]
    del theirs.attribute[:]
    theirs.attribute.extend(kept)
    assert differences(exported, model) == [f"{node.output[0]}: its Conv became another Conv"]


# What only images show.


def narrowed(calibration: Calibration, factor: float, only: str | None = None) -> Calibration:
    ranges = {
        method: {
            name: (factor * low, factor * high) if only in (None, name) else (low, high)
            for name, (low, high) in values.items()
        }
        for method, values in calibration.ranges.items()
    }
    return replace(calibration, ranges=ranges)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("factor", [1 / 4, 16])
def test_ranges_that_do_not_fit(
    name: str, factor: float, calibration: Calibration, exported: Exported, tmp_path: Path
) -> None:
    """Four times too narrow, or sixteen times too wide: in float8, that is four of its 15 binades."""
    if name == "fp8" and factor > 1:
        pytest.skip("float8 has the same bits for small numbers as for large ones")
    scheme, path = SCHEMES[name], tmp_path / "out.onnx"
    convert_file(exported.model, path, scheme, narrowed(calibration, factor))
    failed = failing(exported, path)
    assert RANGES in failed
    assert failed & set(NETWORK.values())


@pytest.mark.parametrize("name", QUANTIZED)
def test_one_range_that_is_too_narrow(name: str, calibration: Calibration, exported: Exported, tmp_path: Path) -> None:
    """Of a single value, a quarter of its range: too little for the maps to show it."""
    path = tmp_path / "out.onnx"
    value = [node.output[0] for node in onnx.load(exported.model).graph.node if node.op_type == "Relu"][5]
    convert_file(exported.model, path, SCHEMES[name], narrowed(calibration, 1 / 4, value))
    comparison = open_conversion(exported.model, path)
    checks = compare_case(comparison, make_case(2, (192, 224), synthetic_images(), PAD))
    found = next(check for check in checks if check.quantity == RANGES)
    assert not found.passed
    assert found.detail == f"{value}: {UNFIT}"


@pytest.mark.parametrize("name", QUANTIZED)
def test_images_must_be_given_for_ranges(name: str, converted: dict[str, Path], exported: Exported) -> None:
    """Synthetic ones are unlike those of the calibration. The checkpoint names no images that are here."""
    for reference in (exported.model, exported.checkpoint):
        with pytest.raises(VerifyError, match=r"is (int8|fp8): its ranges fit images like .* give --images DIR"):
            main([str(reference), str(converted[name])])


def test_sums_beyond_float16(exported: Exported, tmp_path: Path) -> None:
    """Every weight is a float16, but what two convolutions make of them isn't; bfloat16 can."""
    model = onnx.load(exported.model)
    weights = [v.name for v in model.graph.initializer if "layer3.0.conv" in v.name and len(v.dims) == 4]
    for name in weights:
        changed(model, name, lambda array: 5000 * array)
    source = restamp(model, tmp_path / "large.onnx")
    exported = exported._replace(model=source)
    for precision in ("fp16", "bf16"):
        convert_file(source, tmp_path / f"{precision}.onnx", Scheme(precision))
    failed = failing(exported, tmp_path / "fp16.onnx")
    assert failed >= set(NETWORK.values())
    assert not failed & {PRECISION, SAME_NETWORK}
    assert failing(exported, tmp_path / "bf16.onnx") == set()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_dead_convolution_beside_the_checkpoint(
    name: str, converted: dict[str, Path], exported: Exported, tmp_path: Path
) -> None:
    """A checkpoint has no graph to compare with: here the numbers alone must tell."""
    model = onnx.load(converted[name])
    numbers, _ = weight_of(model, some_convolution(model))
    changed(model, numbers, np.zeros_like)
    comparison = open_export(exported.loaded, restamp(model, tmp_path / "dead.onnx"))
    checks = compare_case(comparison, make_case(2, (192, 224), synthetic_images(), PAD))
    assert {check.quantity for check in checks if not check.passed} & set(NETWORK.values())
