"""A bfloat16 file in a form that ONNX Runtime's CPU can run: float32 arithmetic, every result rounded to bfloat16.

That is what tensor cores compute: products of bfloat16 numbers, summed in float32, rounded once at the end. ONNX
Runtime has no bfloat16 convolution on a CPU, but casts both ways.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or where it has values in bfloat16 its emulation."""
    graph = model.graph
    rounded = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    if not rounded:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for node in graph.node:
        copy.graph.node.extend(_rounding(node, rounded))
    for value in copy.graph.initializer:
        if value.data_type == TensorProto.BFLOAT16:
            wide = np.asarray(numpy_helper.to_array(value)).astype(np.float32)
            value.CopyFrom(numpy_helper.from_array(wide, value.name))
    for value in copy.graph.value_info:
        if value.name in rounded:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def _rounding(node: NodeProto, rounded: set[str]) -> list[NodeProto]:
    """The node in float32, and behind each output in bfloat16 a cast there and back."""
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Cast":
        for attribute in copy.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    nodes = [copy]
    for i, name in enumerate(node.output):
        if name in rounded:
            copy.output[i] = f"{name}_wide"
            narrow = f"{name}_narrow"
            nodes.append(onnx.helper.make_node("Cast", [copy.output[i]], [narrow], narrow, to=TensorProto.BFLOAT16))
            nodes.append(onnx.helper.make_node("Cast", [narrow], [name], f"{name}_back", to=TensorProto.FLOAT))
    return nodes
