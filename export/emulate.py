"""A file of half precision as a GPU computes it: in float32 on a CPU, every result rounded to float16 or bfloat16.

That is what tensor cores compute: products of half numbers, summed in float32, rounded once at the end. ONNX Runtime
has no bfloat16 convolution on a CPU; float16 ones it computes in float32, and what lies between two of them it doesn't
round at all, so a sum beyond float16's range would go unseen.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from .network import cut_network, with_network

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The deployed model with its network in this form; the model itself where its network has no half precision."""
    network = cut_network(model)
    stand_in = emulated_network(network)
    if stand_in is network:
        return model
    made = with_network(model, stand_in)
    made.metadata_props.extend(model.metadata_props)
    return made


def emulated_network(network: onnx.ModelProto) -> onnx.ModelProto:
    """A network in this form; itself where it has no half precision."""
    inferred = onnx.shape_inference.infer_shapes(network).graph  # casts at the ends have no type noted
    halves = {
        value.name: value.type.tensor_type.elem_type
        for value in inferred.value_info
        if value.type.tensor_type.elem_type in _HALVES
    }
    if not halves:
        return network
    made = onnx.ModelProto()
    made.CopyFrom(network)
    del made.graph.node[:]
    for node in network.graph.node:
        made.graph.node.extend(_rounding(node, halves))
    for constant in made.graph.initializer:
        if constant.data_type in _HALVES:
            wide = np.asarray(numpy_helper.to_array(constant)).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(wide, constant.name))
    for value in made.graph.value_info:
        if value.name in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return made


def has_bfloat16(model: onnx.ModelProto) -> bool:
    return any(value.data_type == TensorProto.BFLOAT16 for value in model.graph.initializer)


def _rounding(node: NodeProto, halves: dict[str, int]) -> list[NodeProto]:
    """The node in float32, and behind each output in half precision a cast there and back."""
    copy = NodeProto()
    copy.CopyFrom(node)
    if node.op_type == "Cast":
        for attribute in copy.attribute:
            if attribute.name == "to" and attribute.i in _HALVES:
                attribute.i = TensorProto.FLOAT
    nodes = [copy]
    for i, name in enumerate(node.output):
        if name in halves:
            copy.output[i] = f"{name}_wide"
            narrow = f"{name}_narrow"
            nodes.append(onnx.helper.make_node("Cast", [copy.output[i]], [narrow], narrow, to=halves[name]))
            nodes.append(onnx.helper.make_node("Cast", [narrow], [name], f"{name}_back", to=TensorProto.FLOAT))
    return nodes
