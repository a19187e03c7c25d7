"""A file as its numbers say, whatever this CPU's kernels make of it: in float32, every result rounded as it is there.

Half precision as a GPU computes it: products of half numbers, summed in float32, rounded once at the end. ONNX Runtime
has no bfloat16 convolution on a CPU; float16 ones it computes in float32, and what lies between two of them it doesn't
round at all, so a sum beyond float16's range would go unseen.

8-bit integers with exact sums: weights become the floats that they stand for and stay so (`shielded_bias`). No kernel
of 8 bits is chosen then; x86 without VNNI saturates in those.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.backends.saturation import may_saturate
from runtime.machine.processor import read_processor
from runtime.manifest import METADATA_KEY, from_json

from .file import shielded_bias
from .network import cut_network, replace_network
from .precision import read_quantization_note

_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """The deployed model with its network in this form; the model itself where its network is float32 throughout."""
    network = cut_network(model)
    stand_in = emulate_network(network)
    if stand_in is network:
        return model
    made = replace_network(model, stand_in)
    made.metadata_props.extend(model.metadata_props)
    return made


def emulate_network(network: onnx.ModelProto) -> onnx.ModelProto:
    """A network in this form; itself where it is float32 throughout."""
    return _rounded_halves(_with_float_weights(network))


def _with_float_weights(network: onnx.ModelProto) -> onnx.ModelProto:
    """DequantizeLinear of 8-bit integer constants done beforehand; float weights that ONNX Runtime leaves alone."""
    dequantizers = [node for node in network.graph.node if node.op_type == "DequantizeLinear"]
    if not dequantizers:
        return network
    integers = {value.name for value in network.graph.initializer if value.data_type in _INTEGERS}
    weights = [node for node in dequantizers if node.input[0] in integers]
    dequantized = {node.output[0] for node in dequantizers}
    every = {value.name: np.asarray(numpy_helper.to_array(value)) for value in network.graph.initializer}
    floats: dict[str, np.ndarray] = {}
    for node in weights:
        steps, scale, zero = (every[name] for name in node.input)
        axis = next((x.i for x in node.attribute if x.name == "axis"), 1)  # ONNX's default
        shape = [-1 if i == axis else 1 for i in range(steps.ndim)] if scale.ndim else []
        floats[node.output[0]] = (steps - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    made = onnx.ModelProto()
    made.CopyFrom(network)
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.value_info.extend(value for value in network.graph.value_info if value.name not in floats)
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in floats.items())
    for node in network.graph.node:
        if node.output[0] in floats:
            continue
        copy = made.graph.node.add()
        copy.CopyFrom(node)
        if node.op_type == "Conv" and node.input[0] in dequantized and node.input[2:] and node.input[2] in every:
            copy.input[2] = f"{node.output[0]}_shielded"
            shield, added = shielded_bias(copy.input[2], every[node.input[2]])
            made.graph.node.insert(len(made.graph.node) - 1, shield)
            made.graph.initializer.extend(added)
    read = {name for node in made.graph.node for name in node.input}
    for constant in [value for value in made.graph.initializer if value.name not in read]:
        made.graph.initializer.remove(constant)
    return made


def _rounded_halves(network: onnx.ModelProto) -> onnx.ModelProto:
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


def needs_emulation(model: onnx.ModelProto) -> bool:
    """Whether this machine's kernels don't compute what a deployed model says.

    Bfloat16, which none has; int8 for TensorRT, whose kernels sum exactly; int8 on which this processor may saturate.
    """
    if any(value.data_type == TensorProto.BFLOAT16 for value in model.graph.initializer):
        return True
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        return False  # a foreign file
    manifest, note = from_json(text, "the model"), read_quantization_note(model)
    if manifest.precision == "int8" and note is not None and note.target == "tensorrt":
        return True
    return may_saturate(manifest, read_processor())


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
