"""Removes what an exporter leaves around reshaping: arithmetic on shapes, views of views, gathers of expanded indices.

Every rewrite gives the same numbers in every shape that the graph takes. The exporter writes a reshape's sizes out, so
that in a graph of any canvas each is a small graph of its own, of launches and copies to the host on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from .network import ancestors

_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")
Dims = list[int | str]  # a size, or the expression of one


def simplify(model: onnx.ModelProto) -> None:
    """Simplify a model in place. The shapes of its inner values must be known (`value_info`)."""
    _simplify_views(model.graph)
    _gather_rows(model.graph)
    remove_unused(model)


def remove_unused(model: onnx.ModelProto) -> None:
    """Remove the nodes, constants and types of values that no output depends on, in place."""
    graph = model.graph
    inner = {value.name for value in graph.output}
    nodes = ancestors(graph.node, inner)
    known = {name for node in nodes for name in (*node.input, *node.output)} | inner
    kept = (
        (graph.node, nodes),
        (graph.initializer, [value for value in graph.initializer if value.name in known]),
        (graph.value_info, [value for value in graph.value_info if value.name in known]),
    )
    for field, values in kept:
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


def _simplify_views(graph: onnx.GraphProto) -> None:
    """Make of every chain of views one Reshape with constant sizes, where sizes can say it."""
    shapes = _shapes(graph)
    origin: dict[str, str] = {}  # the value that a view is a view of
    for node in graph.node:
        if node.op_type not in _VIEWS:
            continue
        output, source = node.output[0], origin.get(node.input[0], node.input[0])
        before, after = shapes.get(source), shapes.get(output)
        sizes = None if before is None or after is None else _sizes(before, after)
        if sizes is None:
            continue
        origin[output] = source
        name = f"{output}_sizes"
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.CopyFrom(onnx.helper.make_node("Reshape", [source, name], [output], node.name))


def _sizes(before: Dims, after: Dims) -> list[int] | None:
    """The sizes of a Reshape from one shape to the other: 0 is the input's own size, −1 is what is left."""
    sizes = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            sizes.append(size)
        elif axis < len(before) and before[axis] == size:
            sizes.append(0)
        else:
            sizes.append(-1)
    # TensorRT warns of a constant without numbers, which a scalar's sizes are.
    return sizes if sizes and sizes.count(-1) <= 1 and 0 not in after else None


def _gather_rows(graph: onnx.GraphProto) -> None:
    """Gather whole rows instead of each element of them: GatherND in place of GatherElements of an expanded index."""
    shapes = _shapes(graph)
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "GatherElements" or _axis(node) != 1:
            continue
        expand = producer.get(node.input[1])
        if expand is None or expand.op_type != "Expand":
            continue
        data, index, expanded = (shapes.get(name, []) for name in (node.input[0], expand.input[0], expand.output[0]))
        if len(data) == len(index) == 3 and index[2] == 1 and index[0] == data[0] and expanded == [*index[:2], data[2]]:
            gather = onnx.helper.make_node(
                "GatherND", [node.input[0], expand.input[0]], node.output, node.name, batch_dims=1
            )
            node.CopyFrom(gather)


def _axis(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _shapes(graph: onnx.GraphProto) -> dict[str, Dims]:
    """The shapes of the values whose sizes are all known or named."""
    values: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    found: dict[str, Dims] = {}
    for value in values:
        dims: Dims = [
            size.dim_value if size.HasField("dim_value") else size.dim_param
            for size in value.type.tensor_type.shape.dim
        ]
        if "" not in dims:
            found[value.name] = dims
    return found
