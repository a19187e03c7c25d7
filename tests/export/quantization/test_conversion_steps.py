"""The steps of a conversion on small graphs: half precision, 8 bits, emulated bfloat16, the search for blocks."""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx_model.emulation import emulate_network
from export.onnx_model.file import shielded_bias
from export.onnx_model.network import cut_network, load_deployed
from export.onnx_model.session import open_session
from export.quantization.half import to_half
from export.quantization.mixed import Block, Measurement, MixedError, fewest_in_float, quantizable_blocks, trade_table
from export.quantization.qdq import FP8, INT8, Target, quantize_network
from export.verification.ranges import Range

from ..conftest import Exported

X = np.random.default_rng(0).normal(0, 2, (1, 4, 8, 8)).astype(np.float32)


def graph(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], **floats: list[int]) -> onnx.ModelProto:
    """A network: `given` [1, 4, 8, 8] → `x` → … → `y`; `floats` names its inner values.

    As in a deployed one, where pixels are normalised first, no convolution reads an input of the graph.
    """
    nodes, floats = [helper.make_node("Identity", ["given"], ["x"], "first"), *nodes], {"x": [1, 4, 8, 8], **floats}
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("given", TensorProto.FLOAT, [1, 4, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, floats.pop("y"))],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
            value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in floats.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def convolutions(count: int) -> onnx.ModelProto:
    """x → Conv 3×3 → Relu → … → y, so many of them."""
    rng = np.random.default_rng(1)
    nodes, constants, value = [], {}, "x"
    shapes: dict[str, list[int]] = {}
    for i in range(count):
        constants[f"w{i}"] = rng.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32)
        constants[f"b{i}"] = rng.normal(0, 0.3, 4).astype(np.float32)
        last = i == count - 1
        out = "y" if last else f"c{i}"
        nodes.append(helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [out], out, pads=[1, 1, 1, 1]))
        shapes[out] = [1, 4, 8, 8]
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"r{i}"], f"r{i}"))
            value, shapes[f"r{i}"] = f"r{i}", [1, 4, 8, 8]
    return graph(nodes, constants, **shapes)


def run(model: onnx.ModelProto) -> np.ndarray:
    return open_session(model).run(None, {"given": X})[0]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)) / b.std())


def ranges_of(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    visible = onnx.ModelProto()
    visible.CopyFrom(model)
    visible.graph.output.extend(model.graph.value_info)
    session = open_session(visible)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"given": X}), strict=True))
    return {name: (float(values.min()), float(values.max())) for name, values in found.items()}


def test_half_precision_rounds_as_numpy_does() -> None:
    """One convolution with weights of 1: the sums of rounded inputs, rounded once."""
    weights = np.ones((1, 4, 1, 1), np.float32)
    model = graph([helper.make_node("Conv", ["x", "w"], ["y"], "y")], {"w": weights}, y=[1, 1, 8, 8])
    for half, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        converted = emulate_network(to_half(model, half))  # type: ignore[arg-type]
        x = X.astype(dtype).astype(np.float32)
        expected = x.sum(axis=1, keepdims=True).astype(dtype).astype(np.float32)
        given = run(converted)
        step = np.abs(expected) * 2.0 ** -(10 if half == "fp16" else 7)
        assert (np.abs(given - expected) <= step).all()
        assert not np.array_equal(given, run(model))


def test_emulated_bfloat16_is_rounded() -> None:
    """Every value of the emulation is one of bfloat16's: its lower 16 bits are zero."""
    model = emulate_network(to_half(convolutions(3), "bf16"))
    y = run(model)
    assert (y.view(np.uint32) & 0xFFFF == 0).all()
    assert 0.001 < relative(y, run(convolutions(3))) < 0.03
    same = convolutions(1)
    assert emulate_network(same) is same


def test_emulated_float16_overflows() -> None:
    """Between two convolutions too, where ONNX Runtime by itself would keep float32."""
    weights = {"w0": np.full((4, 4, 1, 1), 3e4, np.float32), "w1": np.full((4, 4, 1, 1), 1e-5, np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c"], "c"), helper.make_node("Conv", ["c", "w1"], ["y"], "y")]
    model = to_half(graph(nodes, weights, c=[1, 4, 8, 8], y=[1, 4, 8, 8]), "fp16")
    assert np.isfinite(run(model)).all()
    assert not np.isfinite(run(emulate_network(model))).all()


def test_sampling_positions_stay_in_float32() -> None:
    """The offsets' convolution is half, its sums with pixel positions aren't: float16 has steps of 1 px at 1024."""
    constants = {
        "w0": np.zeros((2, 4, 1, 1), np.float32),
        "w1": np.ones((4, 4, 1, 1), np.float32),
        "base": np.zeros((1, 2, 8, 8), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "c"),
        helper.make_node("Conv", ["c", "w0"], ["offsets"], "offsets"),
        helper.make_node("Add", ["offsets", "base"], ["moved"], "moved"),
        helper.make_node("Transpose", ["moved"], ["grid"], "grid", perm=[0, 2, 3, 1]),
        helper.make_node("GridSample", ["c", "grid"], ["sampled"], "sampled"),
        helper.make_node("Conv", ["sampled", "w1"], ["y"], "y"),
    ]
    square = [1, 4, 8, 8]
    model = graph(
        nodes,
        constants,
        c=square,
        offsets=[1, 2, 8, 8],
        moved=[1, 2, 8, 8],
        grid=[1, 8, 8, 2],
        sampled=square,
        y=square,
    )
    halved = to_half(model, "fp16")
    onnx.checker.check_model(halved, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in halved.graph.value_info}
    assert {name for name, kind in types.items() if kind == TensorProto.FLOAT16} == {"c", "offsets"}
    assert relative(run(halved), run(model)) < 0.01


def test_bfloat16_changes_nothing_but_types() -> None:
    """Opset 22, which bfloat16 needs, has the same attributes and inputs for every operator that the graphs have."""
    kinds = [
        "Conv",
        "Relu",
        "Clip",
        "Add",
        "Mul",
        "MaxPool",
        "Resize",
        "GroupNormalization",
        "Cast",
        "Transpose",
        "Sub",
    ]
    kinds += ["Div", "Sigmoid", "TopK", "Gather", "GatherElements", "Where", "MatMul", "Concat", "Slice"]
    kinds += ["GridSample"]
    for kind in kinds:
        old, new = (onnx.defs.get_schema(kind, version) for version in (21, 22))
        assert [i.name for i in old.inputs] == [i.name for i in new.inputs], kind
        described = [
            {name: str(attribute.default_value) for name, attribute in schema.attributes.items()}
            for schema in (old, new)
        ]
        assert described[0] == described[1], kind


@pytest.mark.parametrize(("form", "limit"), [(INT8, 0.03), (FP8, 0.1)])
@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_eight_bits_against_plain_arithmetic(form: object, limit: float, target: str) -> None:
    model = convolutions(4)
    if form is FP8 and target == "cpu":
        return
    quantized = quantize_network(model, ranges_of(model), target, form)  # type: ignore[arg-type]
    onnx.checker.check_model(quantized, full_check=True)
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("QuantizeLinear") == (4 if target == "cpu" else 3)  # x, r0, r1, and r2 behind the last of 8 bits
    error = relative(run(quantized), run(model))
    assert 0 < error < limit


def test_weights_are_within_half_a_step() -> None:
    model = convolutions(2)
    quantized = quantize_network(model, ranges_of(model), "tensorrt")
    constants = {value.name: numpy_helper.to_array(value) for value in quantized.graph.initializer}
    weight = numpy_helper.to_array(next(v for v in model.graph.initializer if v.name == "w0"))
    scale = constants["w0_scale"]
    assert (scale == scale.astype(np.float16)).all()
    back = constants["w0_quantized"].astype(np.float32) * scale[:, None, None, None]
    assert (np.abs(back - weight) <= scale[:, None, None, None] * 0.501).all()
    assert (np.abs(constants["w0_quantized"]).reshape(4, -1).max(axis=1) >= 126).all()  # every channel's own range


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_a_convolution_that_stays_in_float_is_computed_in_float(target: Target) -> None:
    """Also by ONNX Runtime, which between 8-bit neighbours would round its weights with one scale for all channels.

    What is for TensorRT may have no bias of integers, so there its emulation is meant.
    """
    model = convolutions(4)
    constants = {value.name: value for value in model.graph.initializer}
    small = np.array([0.03, 1, 1, 1], np.float32)  # its first channel's weights, for which the next ones make up
    for name, factors in (("w1", small[:, None, None, None]), ("b1", small), ("w2", 1 / small[None, :, None, None])):
        constants[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constants[name]) * factors, name))
    # What it reads is quantized for another convolution's sake.
    model.graph.node.append(helper.make_node("Conv", ["r0", "w0", "b0"], ["other"], "other", pads=[1, 1, 1, 1]))
    model.graph.node.append(helper.make_node("Conv", ["other", "w0", "b0"], ["z"], "z", pads=[1, 1, 1, 1]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 8, 8]))
    model.graph.value_info.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 4, 8, 8]))
    quantized = quantize_network(model, ranges_of(model), target, in_float=["c1"])
    if target == "tensorrt":
        quantized = emulate_network(quantized)
    onnx.checker.check_model(quantized, full_check=True)
    off = onnxruntime.SessionOptions()
    off.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(quantized.SerializeToString(), off, providers=["CPUExecutionProvider"])
    expected = plain.run(None, {"given": X})[0]
    assert relative(run(quantized), expected) < 0.02  # ties of 8-bit neighbours fall either way


def test_a_shielded_bias_is_the_bias() -> None:
    for bias in (np.zeros(3), np.array([1e-30, 0, -1e-30]), np.array([3.0, -1e-6, 1e4]), np.zeros(0)):
        node, constants = shielded_bias("b", bias.astype(np.float32))
        steps, step, zero = (numpy_helper.to_array(value) for value in constants)
        assert list(node.input) == [value.name for value in constants]
        assert zero == 0
        np.testing.assert_allclose(steps * step, bias, atol=np.abs(bias).max(initial=0) * 2.0**-23)


def test_zero_is_exact() -> None:
    """Padding is zero: the zero point must give it back, however the range lies."""
    model = convolutions(2)
    shifted = ranges_of(model) | {"x": (0.3, 6.1), "r0": (0.0, 0.0)}
    quantized = quantize_network(model, shifted, "cpu")
    constants = {value.name: numpy_helper.to_array(value) for value in quantized.graph.initializer}
    assert constants["x_zero_point"] == 0
    assert constants["r0_scale"] > 0


def test_what_is_kept_in_float_has_no_pair() -> None:
    model = convolutions(4)
    quantized = quantize_network(model, ranges_of(model), "tensorrt", in_float=["c1"])
    read = {node.output[0]: node.input[1] for node in quantized.graph.node if node.op_type == "Conv"}
    assert read == {"c0": "w0_dequantized", "c1": "w1", "c2": "w2_dequantized", "y": "w3"}


def test_blocks_are_named_as_in_training(exported: Exported) -> None:
    named = quantizable_blocks(cut_network(load_deployed(exported.model)[0]))
    assert {"backbone.conv1", "backbone.layer1.0", "pyramid.lateral.0", "head.class_tower.0"} <= named.keys()
    assert len(named["head.class_tower.0"]) == 5  # once a level
    assert not any("logits" in name for name in named)


@pytest.mark.parametrize("needed", range(12))
def test_the_fewest_blocks_are_found(needed: int) -> None:
    """Against trying every number; with fewer measurements."""
    ranking = [Block(f"b{i}", (f"c{i}",), 1 / (i + 1)) for i in range(11)]
    asked = []

    def measure(in_float: Collection[str]) -> Measurement:
        asked.append(len(in_float))
        assert list(in_float) == [f"c{i}" for i in range(len(in_float))]  # the worst ones
        return Measurement(0, 0.5 if len(in_float) >= needed else 0.4, 1.0, 1.0)

    chosen, steps = fewest_in_float(ranking, measure, 0.5, measure([]))
    assert chosen == needed
    assert [step.in_float for step in steps] == sorted(set(asked))
    assert len(asked) == len(set(asked)) <= 8
    table = trade_table(0.5, 4.0, steps, ranking[:chosen], len(ranking))
    assert f"{chosen} of 11" in next(line for line in table.splitlines() if "chosen" in line)


def test_a_loss_that_cannot_be_met() -> None:
    ranking = [Block("a", ("c",), 1.0)]
    with pytest.raises(MixedError, match=r"even with all 1 blocks in float AP is 40\.00, less than 50\.00"):
        fewest_in_float(ranking, lambda _: Measurement(0, 0.4, 1, 1), 0.5, Measurement(0, 0.4, 1, 1))


def test_float8_leaves_depthwise_convolutions_in_float() -> None:
    rng = np.random.default_rng(2)
    weights = {
        "w0": rng.normal(0, 1, (4, 1, 3, 3)).astype(np.float32),
        "w1": rng.normal(0, 1, (4, 4, 1, 1)).astype(np.float32),
        "w2": rng.normal(0, 1, (4, 4, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "c0", pads=[1, 1, 1, 1], group=4),
        helper.make_node("Conv", ["c0", "w1"], ["c1"], "c1"),
        helper.make_node("Conv", ["c1", "w2"], ["y"], "y"),
    ]
    model = graph(nodes, weights, **{name: [1, 4, 8, 8] for name in ("c0", "c1", "y")})
    for form, expected in ((FP8, ["w0", "w1_dequantized", "w2"]), (INT8, ["w0_dequantized", "w1_dequantized", "w2"])):
        quantized = quantize_network(model, ranges_of(model), "tensorrt", form)
        assert [node.input[1] for node in quantized.graph.node if node.op_type == "Conv"] == expected


@pytest.mark.parametrize(
    ("kind", "zero"),
    [(TensorProto.INT8, 0), (TensorProto.UINT8, 0), (TensorProto.UINT8, 77), (TensorProto.FLOAT8E4M3FN, 0)],
)
def test_values_in_8_bits_are_those_of_onnx_runtime(kind: int, zero: int) -> None:
    """`export.verification.ranges` computes them in NumPy; a part of the numbers lies outside of the range."""
    scale = np.array(0.01 if kind == TensorProto.FLOAT8E4M3FN else 0.03, np.float32)
    constants = [numpy_helper.from_array(scale, "scale"), helper.make_tensor("zero", kind, [], [zero])]
    names = ["x", "scale", "zero"], ["quantized", "scale", "zero"]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("QuantizeLinear", names[0], ["quantized"]),
                helper.make_node("DequantizeLinear", names[1], ["y"]),
            ],
            "pair",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4000])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4000])],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    x = np.random.default_rng(3).normal(0, 3, 4000).astype(np.float32)
    expected = open_session(model).run(None, {"x": x})[0]
    given = Range("x", np.float32(scale), np.asarray(numpy_helper.to_array(constants[1]))).rounded(x)
    assert np.abs(expected - x).max() > 1  # some were clipped
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)
