"""Quantize a float32 network: QuantizeLinear and DequantizeLinear around what is to run in 8 bits, and their scales.

The network stays a valid ONNX graph of the same operators. A runtime fuses DequantizeLinear → operator →
QuantizeLinear into its 8-bit kernel. Runtimes differ in what they can fuse, and so the placement depends on the target:

- `tensorrt`: symmetric int8 (TensorRT refuses a zero point other than 0), or float8. The inputs of convolutions are
  quantized, not their outputs. Where a ReLU follows, the QDQ pair is placed behind it: TensorRT fuses all three.
- `cpu`: uint8 activations with a zero point, int8 weights. x86 multiplies unsigned by signed bytes; behind a ReLU the
  zero point makes the ReLU a part of the quantization, and all 8 bits are used. ONNX Runtime's 8-bit convolution also
  needs its output quantized. The steps of weights are so large that no kernel saturates (`onnx_model.saturation`).
- `cpu-vnni`: like `cpu`, with all 8 bits for weights, for processors that sum products in 32 bits (VNNI, ARM's dot
  product). Other processors saturate, and the runtime refuses such a file there.

`onnxruntime.quantization` 1.32 would serve CPUs as well. For TensorRT it quantizes both summands of a residual sum,
which keeps the sum out of the convolution's kernel; it takes float8 scales from deviations and not from ranges; and
only its internal classes accept given ranges.

Weights have a scale for each output channel. Some convolutions always stay in float (`must_stay_float` in
`onnx_model/precision.py`), and so do normalisations, which sum over many values. In float8, grouped convolutions stay
in float too: a depthwise convolution sums nine products, too few for the errors of 3 mantissa bits to average out.
`mixed.py` may choose further exceptions by their cost in AP.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.manifest import Precision
from runtime.names import unknown_name

from ..onnx_model.file import shielded_bias
from ..onnx_model.precision import grouped_convolutions, must_stay_float
from ..onnx_model.saturation import saturation_free_scales
from .scheme import Target

_ACTIVATIONS = ("Relu", "Clip")  # what a runtime fuses into the convolution or sum before it
_SAME_VALUES = ("MaxPool", "Resize")  # input and output share a scale: each output number is one of the input's
_QUANTIZED = ("Conv", "Add", *_SAME_VALUES)
# The least positive float16. A channel whose weights need a smaller scale contributes nothing.
_LEAST_SCALE = 2.0**-24


class Layout(NamedTuple):
    """How 8 bits are placed and scaled for a target."""

    symmetric: bool  # activations are signed and have no zero point
    fits_16_bits: bool  # weights are scaled so that no sum of two products saturates in 16 bits


def layout_of(target: Target) -> Layout:
    """The layout that a target needs. Raises UserError for an unknown target."""
    match target:
        case "tensorrt":
            return Layout(symmetric=True, fits_16_bits=False)
        case "cpu":
            return Layout(symmetric=False, fits_16_bits=True)
        case "cpu-vnni":
            return Layout(symmetric=False, fits_16_bits=False)
        case _:
            unknown_name(target, "target", Target)


@dataclasses.dataclass(frozen=True)
class NumberFormat:
    """An 8-bit number format."""

    elem_type: int
    dtype: np.dtype
    steps: float  # the largest number: scale · steps is the largest value of a symmetric range


INT8 = NumberFormat(TensorProto.INT8, np.dtype(np.int8), 127)
FP8 = NumberFormat(TensorProto.FLOAT8E4M3FN, np.dtype(ml_dtypes.float8_e4m3fn), 448)


def weight_format(precision: Precision) -> NumberFormat:
    """The number format of quantized weights in an int8 or fp8 file."""
    return FP8 if precision == "fp8" else INT8


Ranges = Mapping[str, tuple[float, float]]  # value → its least and largest number while calibrating
Means = Mapping[str, Sequence[float]]  # value → the mean of each of its channels while calibrating


def quantizable(network: onnx.ModelProto, weights: NumberFormat = INT8) -> list[NodeProto]:
    """The nodes of a network that may run in 8 bits, with weights in this format."""
    nodes = list(network.graph.node)
    constants = {value.name for value in network.graph.initializer}
    in_float = must_stay_float(nodes, (value.name for value in network.graph.output))
    if weights is FP8:
        in_float |= grouped_convolutions(nodes)
    return [
        node
        for node in nodes
        if node.op_type in _QUANTIZED
        and node.output[0] not in in_float
        and (node.op_type != "Conv" or node.input[1] in constants)
        and (node.op_type != "Add" or not constants.intersection(node.input))
    ]


def values_to_calibrate(network: onnx.ModelProto) -> list[str]:
    """The values whose ranges any target may need, whatever stays in float."""
    chosen = quantizable(network)
    return sorted(_values(network, chosen, layout_of("cpu")) | _values(network, chosen, layout_of("tensorrt")))


def quantize_network(
    network: onnx.ModelProto,
    ranges: Ranges,
    target: Target,
    weights: NumberFormat = INT8,
    in_float: Collection[str] = (),
    means: Means | None = None,
) -> onnx.ModelProto:
    """The network with QDQ pairs (QuantizeLinear, DequantizeLinear); everything else stays float32.

    `in_float` names outputs of nodes to leave as they are; a sum of such outputs stays float too. With `means`, biases
    are corrected for the average error that rounding the weights causes (Nagel et al., 2019, arXiv 1906.04721).
    """
    chosen = [
        node
        for node in quantizable(network, weights)
        if node.output[0] not in in_float and not (node.op_type == "Add" and set(in_float).intersection(node.input))
    ]
    layout = layout_of(target)
    writer = _Writer(network, ranges, layout, weights, means or {})
    values = _values(network, chosen, layout)
    quantized = {node.output[0] for node in chosen if node.op_type == "Conv"}
    for node in network.graph.node:
        writer.add(node, values, node.output[0] in quantized)
    used = {name for node in writer.nodes for name in node.input}
    graph = network.graph
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            writer.nodes,
            graph.name,
            graph.input,
            graph.output,
            [*(value for value in graph.initializer if value.name in used), *writer.constants.values()],
            value_info=graph.value_info,
        ),
        opset_imports=network.opset_import,
        ir_version=network.ir_version,
    )


def _values(network: onnx.ModelProto, chosen: list[NodeProto], layout: Layout) -> set[str]:
    """Names of the values behind which a QDQ pair is placed."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in network.graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {value.name for value in network.graph.initializer}
    convolved = {node.output[0] for node in network.graph.node if node.op_type == "Conv"}
    names: set[str] = set()
    for node in chosen:
        inputs = [name for name in (node.input if node.op_type == "Add" else node.input[:1]) if name not in constants]
        if layout.symmetric:
            if node.op_type == "Add":
                # One summand may come straight from a convolution: its kernel then adds the other summand.
                straight = [name for name in inputs if name in convolved and len(readers[name]) == 1]
                inputs = [name for name in inputs if name not in straight[:1]]
            names.update(inputs)
            if node.op_type in _SAME_VALUES:
                names.update(node.output)
            continue
        names.update(inputs)
        output = node.output[0]
        following = readers[output]
        fused = len(following) == 1 and following[0].op_type in _ACTIVATIONS
        names.add(following[0].output[0] if fused else output)
    return names - {value.name for value in network.graph.output}


class _Writer:
    """The quantized network's nodes and constants so far."""

    def __init__(
        self, network: onnx.ModelProto, ranges: Ranges, layout: Layout, weights: NumberFormat, means: Means
    ) -> None:
        self._originals = {value.name: value for value in network.graph.initializer}
        self._ranges, self._layout, self._weights, self._means = ranges, layout, weights, means
        self._like: dict[str, str] = {}  # value → the value whose scale it shares
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def add(self, node: NodeProto, values: set[str], is_quantized: bool) -> None:
        """Add a copy of a node, in 8 bits if it `is_quantized`, with QDQ pairs behind its outputs in `values`."""
        copy = NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in values:
                copy.input[i] = f"{name}_dequantized"
        if is_quantized:
            copy.input[1] = self._weight(node.input[1])
            if len(node.input) > 2 and node.input[0] in self._means:
                copy.input[2] = self._corrected_bias(node)
        elif not self._layout.symmetric and node.op_type == "Conv" and len(node.input) > 2 and node.input[0] in values:
            copy.input[2] = self._shielded_bias(node)
        if self._layout.symmetric and node.output[0] in values and self._clips_from_zero(node):
            # The pair behind it clips the upper end. TensorRT fuses a ReLU into a convolution, and ONNX Runtime 1.32
            # can't open a file with a Clip before a float8 quantization.
            copy.op_type = "Relu"
            del copy.input[1:]
        self.nodes.append(copy)
        if node.op_type in _SAME_VALUES and node.input[0] in values:
            self._like[node.output[0]] = self._like.get(node.input[0], node.input[0])
        for name in node.output:
            if name in values:
                self._pair(name)

    def _clips_from_zero(self, node: NodeProto) -> bool:
        """Whether a node is a Clip from 0 (ReLU6). The range measured behind it ends no later than the Clip's."""
        least = self._originals.get(node.input[1]) if node.op_type == "Clip" else None
        return least is not None and float(numpy_helper.to_array(least)) == 0

    def _pair(self, name: str) -> None:
        """Add a QDQ pair behind a value: the scale and zero point of an activation are decided here."""
        low, high = self._ranges[self._like.get(name, name)]
        low, high = min(low, 0.0), max(high, 0.0)  # every range contains zero: padding needs it
        scale_name, zero_name = f"{name}_scale", f"{name}_zero_point"
        if not self._layout.symmetric:
            scale = np.array(max((high - low) / 255, _LEAST_SCALE))
            zero = np.array(np.rint(-low / scale), np.uint8)
        else:
            scale = _as_float16(np.array(max(-low, high) / self._weights.steps))
            zero = np.zeros((), self._weights.dtype)
        self._constant(scale_name, np.asarray(scale, np.float32))
        self._constant(zero_name, zero)
        self._node("QuantizeLinear", [name, scale_name, zero_name], f"{name}_quantized")
        self._node("DequantizeLinear", [f"{name}_quantized", scale_name, zero_name], f"{name}_dequantized")

    def _weight(self, name: str) -> str:
        """A convolution's weight in 8 bits, with a scale for each output channel; made once where it is shared."""
        output = f"{name}_dequantized"
        if f"{name}_quantized" not in self.constants:
            array, most = numpy_helper.to_array(self._originals[name]), self._weights.steps
            largest = np.abs(array).reshape(len(array), -1).max(axis=1)
            scale = saturation_free_scales(array, most) if self._layout.fits_16_bits else largest / most
            scale = _as_float16(scale) if self._layout.symmetric else np.maximum(scale, _LEAST_SCALE)
            scale = scale.astype(np.float32)
            steps = np.clip(array / scale.reshape(-1, *[1] * (array.ndim - 1)), -most, most)
            whole = steps if self._weights is FP8 else np.rint(steps)
            self._constant(f"{name}_quantized", whole.astype(self._weights.dtype))
            self._constant(f"{name}_scale", scale)
            self._constant(f"{name}_zero_point", np.zeros(len(scale), self._weights.dtype))
            self._node("DequantizeLinear", [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"], output, axis=0)
        return output

    def _corrected_bias(self, node: NodeProto) -> str:
        """The bias plus the error of the rounded weights times the mean of their inputs."""
        _, weight, bias = node.input
        array = numpy_helper.to_array(self._originals[weight]).astype(np.float64)
        steps = self.constants[f"{weight}_quantized"]
        rounded = np.frombuffer(steps.raw_data, self._weights.dtype).reshape(array.shape).astype(np.float64)
        scale = np.frombuffer(self.constants[f"{weight}_scale"].raw_data, np.float32)
        lost = array - rounded * scale.reshape(-1, *[1] * (array.ndim - 1))
        lost = lost.reshape(*array.shape[:2], -1).sum(axis=2)  # [O, input channels of a group]
        means = np.asarray(self._means[node.input[0]]).reshape(-1, lost.shape[1])  # [groups, …]
        moved = (lost * np.repeat(means, len(lost) // len(means), axis=0)).sum(axis=1)
        name = f"{node.output[0]}_bias"
        self._constant(name, (numpy_helper.to_array(self._originals[bias]) + moved).astype(np.float32))
        return name

    def _shielded_bias(self, node: NodeProto) -> str:
        """The bias of a float convolution that reads a dequantized value, so that no runtime rounds the convolution."""
        name = f"{node.output[0]}_bias"
        shield, constants = shielded_bias(name, numpy_helper.to_array(self._originals[node.input[2]]))
        self.nodes.append(shield)
        self.constants |= {value.name: value for value in constants}
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], output, **attributes))

    def _constant(self, name: str, array: np.ndarray) -> None:
        elem_type = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}.get(
            array.dtype, self._weights.elem_type
        )
        self.constants[name] = TensorProto(name=name, data_type=elem_type, dims=array.shape, raw_data=array.tobytes())


def _as_float16(scale: np.ndarray) -> np.ndarray:
    """The scales rounded up to float16, as float32, so that a half-precision network keeps them unchanged."""
    scale = np.maximum(scale, _LEAST_SCALE).astype(np.float32)
    rounded = scale.astype(np.float16)
    up = np.nextafter(rounded, np.float16(np.inf))
    return np.where(rounded.astype(np.float32) < scale, up, rounded).astype(np.float32)
