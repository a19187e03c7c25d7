"""Convert a float32 network to float16 or bfloat16, with casts at its inputs and outputs.

TensorRT and TensorRT for RTX take the graph's types as they are ("strong typing"), so half precision is decided here
and not by a builder's flags. The following stay float32: normalisation (pixels up to 255 minus a mean), sampling
positions of deformable convolutions (float16 has steps of 1 px beyond 1024), and Resize's factors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.names import unknown_name

from ..onnx_model.network import ModelError, ancestors

Half = Literal["fp16", "bf16"]

_TYPES: dict[Half, tuple[int, np.dtype]] = {
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
# The first opset whose Conv takes bfloat16. It changes nothing else in the operators of these graphs.
_BF16_OPSET = 22
# Inputs that are float32 by their operator's definition.
_FLOAT_INPUTS = {"Resize": (1, 2)}


def to_half(network: onnx.ModelProto, half: Half) -> onnx.ModelProto:
    """The network with its convolutions, and what lies between them, in half precision. Its outputs stay float32.

    Raises ModelError for a weight beyond the range of float16.
    """
    opsets = _opsets(network, half)
    elem_type, dtype = _TYPES[half]
    inferred = onnx.shape_inference.infer_shapes(network)
    graph = inferred.graph
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    constants = {value.name: value for value in graph.initializer}
    kept = _kept_in_float32(list(graph.node), floats)
    new = _Rewriter(half, elem_type, dtype, constants, floats)
    for node in graph.node:
        new.add(node, node.output[0] not in kept)
    for value in graph.output:
        new.finish(value.name)
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            new.nodes,
            graph.name,
            graph.input,
            graph.output,
            list(new.constants.values()),
            value_info=[_retyped(value, elem_type, new.halves) for value in graph.value_info],
        ),
        opset_imports=opsets,
        ir_version=network.ir_version,
    )


def _opsets(network: onnx.ModelProto, half: Half) -> Iterable[onnx.OperatorSetIdProto]:
    match half:
        case "fp16":
            return network.opset_import
        case "bf16":
            return [onnx.helper.make_opsetid("", _BF16_OPSET)]
        case _:
            unknown_name(half, "precision", Half)


def _kept_in_float32(nodes: list[NodeProto], floats: set[str]) -> set[str]:
    """Outputs of the nodes that compute in float32.

    Convolutions and group norms ask for half precision; other nodes take the precision of their inputs. A dequantized
    value stays float32 up to the next QuantizeLinear: an 8-bit kernel leaves no float in memory there, and ONNX Runtime
    1.32 computes wrong biases from float16 scales.
    """
    samplers = [node for node in nodes if node.op_type == "GridSample"]
    positions = ancestors(nodes, (node.input[1] for node in samplers), until=("Conv",))
    sampling = {node.output[0] for node in (*samplers, *positions) if node.op_type != "Conv"}
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    kept: set[str] = set()
    halves: set[str] = set()
    for node in nodes:
        asks = node.op_type in ("Conv", "GroupNormalization") and node.input[1] not in dequantized
        flows = [name in halves for name in node.input if name in floats]
        if node.output[0] not in sampling and (asks or (flows and all(flows))):
            halves.update(node.output)
        else:
            kept.update(node.output)
    return kept


class _Rewriter:
    """The new network's nodes so far, and which of their values are in half precision."""

    def __init__(
        self, half: Half, elem_type: int, dtype: np.dtype, constants: dict[str, TensorProto], floats: set[str]
    ) -> None:
        self._half, self._elem_type, self._dtype = half, elem_type, dtype
        self._originals, self._floats = constants, floats
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}  # that the nodes read
        self.halves: set[str] = set()  # values in half precision under their old name
        self._casts: dict[str, str] = {}  # value → its copy in the other precision

    def add(self, node: NodeProto, in_half: bool) -> None:
        """Add a copy of a node that computes in half precision or in float32, with the casts that it needs."""
        copy = NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            wanted = in_half and i not in _FLOAT_INPUTS.get(node.op_type, ())
            copy.input[i] = self._constant(name, wanted) if name in self._originals else self._value(name, wanted)
        self.nodes.append(copy)
        if in_half:
            self.halves.update(self._floats.intersection(node.output))

    def finish(self, output: str) -> None:
        """Make a graph's output float32 again, under its name."""
        if output not in self.halves:
            return
        inner = f"{output}_{self._half}"
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == output:
                        names[i] = inner
        self.halves.remove(output)
        self.nodes.append(onnx.helper.make_node("Cast", [inner], [output], f"{output}_cast", to=TensorProto.FLOAT))

    def _constant(self, name: str, wanted: bool) -> str:
        original = self._originals[name]
        if not wanted or original.data_type != TensorProto.FLOAT:
            self.constants[name] = original
            return name
        renamed = f"{name}_{self._half}"
        if renamed not in self.constants:
            array = numpy_helper.to_array(original)
            with np.errstate(over="ignore"):
                halved = array.astype(self._dtype)
            if not np.isfinite(halved.astype(np.float32)).all():
                raise ModelError(
                    f"{name} holds {np.abs(array).max():.4g}, beyond the range of {self._half}; use bf16 or int8"
                )
            self.constants[renamed] = TensorProto(
                name=renamed, data_type=self._elem_type, dims=original.dims, raw_data=halved.tobytes()
            )
        return renamed

    def _value(self, name: str, wanted: bool) -> str:
        """The name of a value in half precision (`wanted`) or float32, cast where it has the other precision."""
        if name not in self._floats or (name in self.halves) == wanted:
            return name
        if name not in self._casts:
            to = self._elem_type if wanted else TensorProto.FLOAT
            self._casts[name] = f"{name}_{self._half if wanted else 'fp32'}"
            self.nodes.append(onnx.helper.make_node("Cast", [name], [self._casts[name]], f"{name}_cast", to=to))
        return self._casts[name]


def _retyped(value: onnx.ValueInfoProto, elem_type: int, halves: set[str]) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    if value.name in halves:
        copy.type.tensor_type.elem_type = elem_type
    return copy
