"""Emulation in float32 of models that this CPU's kernels don't compute as written, each result rounded as specified.

Half precision is computed as on a GPU: products of half-precision numbers, summed in float32, rounded once at the end.
ONNX Runtime has no bfloat16 convolution for CPUs. It computes float16 convolutions in float32 and doesn't round
between two of them, so a sum beyond float16's range would go unseen.

8-bit integers are computed with exact sums: weights become the floats that they stand for and stay floats
(`shielded_bias`), so no 8-bit kernel is chosen, which saturates on x86 without VNNI.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.backends.saturation import may_saturate
from runtime.machine.processor import read_processor
from runtime.manifest import METADATA_KEY, from_json

from .file import shielded_bias, state_hash
from .network import cut_network, replace_network
from .precision import read_quantization_note

_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """The deployed model with its network emulated; the model itself where its network is float32 throughout."""
    network = cut_network(model)
    stand_in = emulate_network(network)
    if stand_in is network:
        return model
    made = replace_network(model, stand_in)
    made.metadata_props.extend(model.metadata_props)
    state_hash(made)
    return made


def emulate_network(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network emulated; the network itself where it is float32 throughout."""
    return _rounded_halves(_with_float_weights(network))


def _with_float_weights(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network with 8-bit integer weights dequantized to float constants that ONNX Runtime doesn't round again."""
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
    if not _has_halves(network):
        return network
    inferred = onnx.shape_inference.infer_shapes(network).graph  # value_info lacks the casts at both ends
    halves = {
        value.name: value.type.tensor_type.elem_type
        for value in inferred.value_info
        if value.type.tensor_type.elem_type in _HALVES
    }
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


def _has_halves(network: onnx.ModelProto) -> bool:
    """Whether a value may be in half precision: such a type begins with a constant or a cast."""
    casts = (x.i for node in network.graph.node if node.op_type == "Cast" for x in node.attribute if x.name == "to")
    return any(kind in _HALVES for kind in (*(value.data_type for value in network.graph.initializer), *casts))


def needs_emulation(model: onnx.ModelProto) -> bool:
    """Whether this CPU's kernels compute something else than a deployed model says.

    True for bfloat16, which has no CPU kernels; for int8 made for TensorRT, whose kernels sum exactly; and for int8
    whose sums may saturate on this processor.
    """
    if any(value.data_type == TensorProto.BFLOAT16 for value in model.graph.initializer):
        return True
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        return False  # not this toolkit's file
    manifest, note = from_json(text, "the model"), read_quantization_note(model)
    if manifest.precision == "int8" and note is not None and note.target == "tensorrt":
        return True
    return may_saturate(manifest, read_processor())


def _rounding(node: NodeProto, halves: dict[str, int]) -> list[NodeProto]:
    """The node in float32, with a cast to half precision and back behind each output that was half precision."""
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
