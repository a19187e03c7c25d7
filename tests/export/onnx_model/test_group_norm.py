"""GroupNormalization in two forms: equal numbers, and joining undoes splitting but touches nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.calibration import Calibration
from export.onnx_model.emulation import emulate_network
from export.onnx_model.group_norm import join_group_norms, split_group_norms
from export.onnx_model.network import cut_network, dense_map_names, load_deployed
from export.onnx_model.precision import count_convolutions
from export.onnx_model.session import open_session
from export.quantization.qdq import quantize_network
from train.checkpoint import LoadedDetector

from ..conftest import Exported

DYNAMIC = ("b", "h", "w")
RNG = np.random.default_rng(0)


def reference(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, groups: int, epsilon: float) -> np.ndarray:
    """Wu and He, 2018 (arXiv 1803.08494), equation 1, in float64."""
    wide = x.astype(np.float64).reshape(len(x), groups, -1)
    mean, variance = wide.mean(axis=2, keepdims=True), wide.var(axis=2, keepdims=True)
    normalized = ((wide - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return normalized * scale.astype(np.float64)[:, None, None] + bias.astype(np.float64)[:, None, None]


def norms(
    count: int = 1,
    groups: int = 4,
    channels: int = 16,
    epsilon: float = 1e-5,
    sides: tuple[str | int, ...] = DYNAMIC,
    elem_type: int = TensorProto.FLOAT,
    opset: int = 21,
) -> onnx.ModelProto:
    """`x` → `count` group norms, which share scale and bias, each with a ReLU → `y`."""
    batch, height, width = sides
    shape = [batch, channels, height, width]
    rng = np.random.default_rng(1)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    constants = {
        "scale": rng.normal(1, 0.3, channels).astype(dtype),
        "bias": rng.normal(0, 0.5, channels).astype(dtype),
    }
    nodes, inner, value = [], [], "x"
    for i in range(count):
        out = "y" if i == count - 1 else f"r{i}"
        node = helper.make_node("GroupNormalization", [value, "scale", "bias"], [f"n{i}"], f"norm {i}")
        attributes = {"stash_type": 1, "num_groups": groups, "epsilon": epsilon}
        node.attribute.extend(helper.make_attribute(key, given) for key, given in attributes.items())
        node.doc_string = ""
        nodes += [node, helper.make_node("Relu", [f"n{i}"], [out], f"relu {i}")]
        inner += [helper.make_tensor_value_info(name, elem_type, shape) for name in (f"n{i}", out) if name != "y"]
        value = out
    graph = helper.make_graph(
        nodes,
        "norms",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=inner,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(value for value in model.graph.initializer if value.name == name))


def exact(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("change", [split_group_norms, join_group_norms])
def test_a_graph_without_group_norms_is_unchanged(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    model = norms()
    del model.graph.node[0]
    model.graph.node[0].input[0] = "x"
    assert exact(change(model)) == exact(model)
    empty = helper.make_model(helper.make_graph([], "empty", [], []))
    assert exact(change(empty)) == exact(empty)


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (1, 16, 60, 80), (3, 16, 7, 5), (2, 16, 1, 33)])
@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_the_numbers_are_those_of_the_definition(shape: tuple[int, ...], offset: float, groups: int) -> None:
    model = norms(groups=groups, epsilon=1e-3)
    split = split_group_norms(model)
    assert "GroupNormalization" not in kinds(split)
    x = (RNG.normal(size=shape) * 2 + offset).astype(np.float32)
    (given,) = open_session(split).run(None, {"x": x})
    expected = np.maximum(reference(x, constant(model, "scale"), constant(model, "bias"), groups, 1e-3), 0)
    # The mean is rounded to the float32 numbers near the offset.
    np.testing.assert_allclose(given, expected, rtol=2e-6, atol=4e-6 * max(1, offset))


@pytest.mark.parametrize("sides", [DYNAMIC, ("b", 12, 20), (2, 12, 20)], ids=str)
@pytest.mark.parametrize("opset", [21, 22])
def test_one_split_graph_takes_every_batch_and_side(sides: tuple[str | int, ...], opset: int) -> None:
    model = norms(3, sides=sides, opset=opset)
    split = split_group_norms(model)
    onnx.checker.check_model(split, full_check=True)
    native, own = open_session(model), open_session(split)
    for batch, height, width in [(2, 12, 20), (1, 12, 20), (5, 12, 20), (1, 3, 8)]:
        wanted = (batch, height, width)
        if any(isinstance(side, int) and side != want for side, want in zip(sides, wanted, strict=True)):
            continue
        x = RNG.normal(size=(batch, 16, height, width)).astype(np.float32)
        expected, given = native.run(None, {"x": x})[0], own.run(None, {"x": x})[0]
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
        singles = [own.run(None, {"x": one[None]})[0] for one in x] if sides[0] == "b" else [given]
        np.testing.assert_array_equal(np.concatenate(singles), given)


@pytest.mark.parametrize("sides", [DYNAMIC, ("b", 12, 20)], ids=str)
def test_the_new_values_have_types_and_shapes(sides: tuple[str | int, ...]) -> None:
    split = split_group_norms(norms(2, sides=sides))
    said = {value.name: value for value in split.graph.value_info}
    made = {name for node in split.graph.node for name in node.output} - {"y"}
    assert made <= said.keys()
    bare = onnx.ModelProto()
    bare.CopyFrom(split)
    del bare.graph.value_info[:]
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph.value_info}
    for name in made:
        stated, found = (table[name].type.tensor_type for table in (said, inferred))
        assert stated.elem_type == found.elem_type == TensorProto.FLOAT
        for one, other in zip(stated.shape.dim, found.shape.dim, strict=True):
            assert one.HasField("dim_value") or one.dim_param
            assert not other.HasField("dim_value") or one.dim_value == other.dim_value
    like = [said[name].type for name in ("n0", "n0_ungrouped", "n0_scaled")]
    assert like[0] == like[1] == like[2]  # equal names of sides let ONNX Runtime compute in place


@pytest.mark.parametrize("model", [norms(), norms(3), norms(2, 32, 256), norms(2, sides=("b", 12, 20))])
def test_joining_undoes_splitting(model: onnx.ModelProto) -> None:
    before = exact(model)
    split = split_group_norms(model)
    assert kinds(split)["InstanceNormalization"] == kinds(model)["GroupNormalization"] > 0
    assert exact(join_group_norms(split)) == before == exact(model)
    assert exact(split_group_norms(split)) == exact(split)
    assert exact(join_group_norms(model)) == before


def test_an_exported_file_survives_the_round_trip(exported: Exported, fixed: tuple[LoadedDetector, Path]) -> None:
    for path in (exported.model, fixed[1]):
        model, manifest = load_deployed(path)
        native = join_group_norms(model)
        assert kinds(native)["GroupNormalization"] == 2 * sum(
            name.startswith("class_logits") for name in dense_map_names(native)
        )
        split = split_group_norms(native)
        onnx.checker.check_model(split, full_check=True)
        assert "GroupNormalization" not in kinds(split)
        assert exact(join_group_norms(split)) == exact(native)
        batch, height, width = manifest.inputs.nearest_batch(2), 192, 224
        feed = {
            "images": RNG.integers(0, 256, (batch, height, width, 3), dtype=np.uint8),
            "image_sizes": np.full((batch, 2), (height, width), np.int32),
        }
        for ours, theirs in zip(open_session(split).run(None, feed), open_session(native).run(None, feed), strict=True):
            np.testing.assert_allclose(np.sort(ours.ravel()), np.sort(theirs.ravel()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_stays_native(elem_type: int) -> None:
    """GroupNormalization sums in float32, InstanceNormalization in the type of its input."""
    model = norms(elem_type=elem_type, opset=22)
    assert exact(split_group_norms(model)) == exact(model)


def other_stash(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].i = TensorProto.FLOAT16


def scale_computed(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Neg", ["bias"], ["negative"]))
    model.graph.node[1].input[1] = "negative"


def scale_read_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["scale"], ["negative"]))


def scale_an_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [16]))


def rank_unknown(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def three_sides(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.type.tensor_type.shape.dim[3:]


@pytest.mark.parametrize(
    "change", [other_stash, scale_computed, scale_read_elsewhere, scale_an_output, rank_unknown, three_sides]
)
def test_what_the_split_form_cannot_stand_for_stays(change: Callable[[onnx.ModelProto], None]) -> None:
    model = norms()
    change(model)
    assert exact(split_group_norms(model)) == exact(model)


def test_norms_that_share_constants_stay_together() -> None:
    """The first can't be split, so the constants keep the shape that it needs."""
    model = norms(2)
    other_stash(model)
    assert exact(split_group_norms(model)) == exact(model)


def set_constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    value = next(value for value in model.graph.initializer if value.name == name)
    value.CopyFrom(numpy_helper.from_array(array, name))


def one_of_ones(model: onnx.ModelProto) -> None:
    set_constant(model, "group_norm_constant_ones_4", np.array([1, 1, 1, 1.001], np.float32))


def shift_of_a_group(model: onnx.ModelProto) -> None:
    set_constant(model, "group_norm_constant_zeros_4", np.array([0, 0, 0.001, 0], np.float32))


def two_groups(model: onnx.ModelProto) -> None:
    set_constant(model, "group_norm_constant_groups_4", np.array([0, 2, -1, 0], np.int64))


def one_scale(model: onnx.ModelProto) -> None:
    set_constant(model, "scale", np.ones((1, 1, 1), np.float32))


def inner_value_read(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["n0_normalized"], ["negative"]))


def inner_value_an_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(next(v for v in model.graph.value_info if v.name == "n0_scaled"))


def swapped_summands(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Add")
    node.input[:] = node.input[::-1]


def subtracted(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Add").op_type = "Sub"


@pytest.mark.parametrize(
    "break_it",
    [
        one_of_ones,
        shift_of_a_group,
        two_groups,
        one_scale,
        inner_value_read,
        inner_value_an_output,
        swapped_summands,
        subtracted,
        scale_read_elsewhere,
    ],
)
def test_what_only_looks_like_the_split_form_is_not_joined(break_it: Callable[[onnx.ModelProto], None]) -> None:
    split = split_group_norms(norms())
    break_it(split)
    joined = join_group_norms(split)
    assert exact(joined) == exact(split)
    assert "GroupNormalization" not in kinds(joined)


def test_onnx_runtime_runs_fewer_nodes() -> None:
    """The reason for the form: it has no CPU kernel for GroupNormalization and takes the node apart."""
    counted = {}
    for name, model in {"native": norms(), "split": split_group_norms(norms())}.items():
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = onnxruntime.InferenceSession(exact(model), options, providers=["CPUExecutionProvider"])
        counted[name] = sum(len(part.get_nodes()) for part in session.get_provider_graph_assignment_info())
    assert counted["split"] == 6 < counted["native"]


@pytest.mark.parametrize("target", ["cpu", "cpu-vnni"])
def test_int8_for_cpus_quantizes_both_forms_alike(
    exported: Exported, calibration: Calibration, target: Literal["cpu", "cpu-vnni"]
) -> None:
    native = join_group_norms(load_deployed(exported.model)[0])
    made = [
        quantize_network(cut_network(model), calibration.ranges["max"], target, means=calibration.means)
        for model in (native, split_group_norms(native))
    ]
    pairs = [
        {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input} for model in made
    ]
    assert pairs[0] == pairs[1] != set()
    assert count_convolutions(made[0]) == count_convolutions(made[1])
    images = RNG.integers(0, 256, (2, 192, 224, 3), dtype=np.uint8)
    outputs = [open_session(emulate_network(model)).run(None, {"images": images}) for model in made]
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
