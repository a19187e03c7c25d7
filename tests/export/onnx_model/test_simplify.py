"""The rewrites of an exporter's graph: the same numbers in every shape, and nothing left over."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from export.onnx_model.simplify import remove_unused, simplify


def value(name: str, dims: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return make_tensor_value_info(name, kind, dims)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    inner: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    **constants: np.ndarray,
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = make_graph(nodes, "test", inputs, [output], initializers, value_info=inner)
    return make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feed)
    return np.asarray(found)


def flattened() -> onnx.ModelProto:
    """[B, C, h, w] → [B, 1, C, h · w], with sizes worked out from shapes, as the exporter writes it."""
    nodes = [
        make_node("Shape", ["x"], ["shape"]),
        make_node("Split", ["shape"], ["b", "c", "h", "w"], num_outputs=4),
        make_node("Mul", ["h", "w"], ["n"]),
        make_node("Concat", ["b", "c", "n"], ["sizes"], axis=0),
        make_node("Reshape", ["x", "sizes"], ["flat"], allowzero=1),
        make_node("Unsqueeze", ["flat", "one"], ["y"]),
    ]
    inner = [value("flat", ["b", 3, "h*w"])]
    return model_of(nodes, [value("x", ["b", 3, "h", "w"])], inner, value("y", ["b", 1, 3, "h*w"]), one=np.array([1]))


@pytest.mark.parametrize("shape", [(1, 3, 2, 5), (4, 3, 7, 1)])
def test_views_of_any_size(shape: tuple[int, int, int, int]) -> None:
    model, x = flattened(), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = run(model, x=x)
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Reshape"]
    assert [constant.name for constant in model.graph.initializer] == ["y_sizes"]
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [0, 1, 3, -1]
    np.testing.assert_array_equal(run(model, x=x), expected)


def test_a_view_whose_sizes_no_constant_can_say() -> None:
    """Two sizes are new: the arithmetic stays."""
    nodes = [
        make_node("Shape", ["like"], ["sizes"]),
        make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    model = model_of(nodes, [value("x", ["n"]), value("like", ["h", "w"])], [], value("y", ["h", "w"]))
    before = model.SerializeToString()
    simplify(model)
    assert model.SerializeToString() == before


def test_a_scalar_keeps_its_squeeze() -> None:
    model = model_of([make_node("Squeeze", ["x"], ["y"])], [value("x", [1])], [], value("y", []))
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Squeeze"]


def gathered(width: int, axis: int = 1, expand_to: int | None = None) -> onnx.ModelProto:
    nodes = [
        make_node("Expand", ["index", "sizes"], ["expanded"]),
        make_node("GatherElements", ["data", "expanded"], ["y"], axis=axis),
    ]
    to = expand_to or width
    return model_of(
        nodes,
        [value("data", ["b", "n", width]), value("index", ["b", 2, 1], TensorProto.INT64)],
        [value("expanded", ["b", 2, to], TensorProto.INT64)],
        value("y", ["b", 2, to]),
        sizes=np.array([1, 1, to]),
    )


@pytest.mark.parametrize(("batch", "rows"), [(1, 4), (3, 9)])
def test_rows_are_gathered_whole(batch: int, rows: int) -> None:
    random = np.random.default_rng(0)
    feed = {
        "data": random.normal(size=(batch, rows, 4)).astype(np.float32),
        "index": random.integers(0, rows, (batch, 2, 1)),
    }
    model = gathered(4)
    expected = run(model, **feed)
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["GatherND"]
    np.testing.assert_array_equal(run(model, **feed), expected)


@pytest.mark.parametrize(
    "model", [gathered(4, axis=2), gathered(4, expand_to=3)], ids=["another axis", "a part of a row"]
)
def test_other_gathers_stay(model: onnx.ModelProto) -> None:
    simplify(model)
    assert [node.op_type for node in model.graph.node] == ["Expand", "GatherElements"]


def test_what_nothing_reads_is_removed() -> None:
    nodes = [make_node("Relu", ["x"], ["y"]), make_node("Add", ["x", "unread"], ["z"])]
    model = model_of(nodes, [value("x", [2])], [value("z", [2])], value("y", [2]), unread=np.ones(2, np.float32))
    remove_unused(model)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert not model.graph.initializer
    assert not model.graph.value_info
    assert [given.name for given in model.graph.input] == ["x"]
