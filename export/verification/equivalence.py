"""Whether a converted network is the float32 network up to rounding, compared as graphs: no image needs to show it.

Both graphs are walked backwards from the dense maps. Every node must have a counterpart with the same inputs.
Conversions (casts between floats, QuantizeLinear and DequantizeLinear of one scale) are skipped. Constants may differ
by the rounding of their number format, and the bias of an 8-bit convolution by a correction: the rounding errors of its
weights times means that its input can have. After the dense maps nothing may differ but the form for a processor.
Whether the ranges of activations fit, only images can tell (`ranges.py`).
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.manifest import Thresholds

from ..onnx_model.forms import for_processor
from ..onnx_model.group_norm import join_group_norms
from ..onnx_model.network import cut_network, dense_map_names, postprocessing_nodes
from ..onnx_model.processor import Processor

# Half of the last bit, relative to the number and absolute around 0: the largest rounding error of a format.
_ROUNDING = {
    TensorProto.FLOAT: (0.0, 0.0),
    TensorProto.FLOAT16: (2.0**-11, 2.0**-25),
    TensorProto.BFLOAT16: (2.0**-8, 0.0),
    TensorProto.FLOAT8E4M3FN: (2.0**-4, 2.0**-10),
    TensorProto.INT8: (0.0, 0.5),
    TensorProto.INT32: (2.0**-23, 0.5),  # of a bias (`shielded_bias`), multiplied in float32
}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FEWEST_STEPS = 63  # of a channel's largest weight: 127 as a rule, 64 for CPUs without VNNI, 448 in float8
_SLACK = 1.001  # scales are float16 numbers, rounded up
_LEAST_SCALE = 2.0**-24
_NONE = (np.zeros(()), np.zeros(()))  # no correction


def network_differences(source: onnx.ModelProto, converted: onnx.ModelProto, thresholds: Thresholds) -> list[str]:
    """How a converted model's network differs from its source's beyond rounding: one line for each place.

    `thresholds` are those of the source's manifest.
    """
    forms = [for_processor(source, thresholds, processor) for processor in get_args(Processor)]
    if _exact(converted) not in [_exact(model) for model in (source, *forms)]:  # older files have forms of their own
        return ["the postprocessing differs"]
    ours, theirs = (_Graph(cut_network(join_group_norms(model))) for model in (source, converted))
    pending = [(name, name) for name in dense_map_names(source)]
    partner: dict[str, str] = {}
    found: list[str] = []
    corrections: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # bias → least and largest correction
    while pending:
        a, b = (graph.origin(name) for graph, name in zip((ours, theirs), pending.pop(), strict=True))
        if a in partner:
            if partner[a] != b:
                found.append(f"{a} is read where the converted network reads {b}")
            continue
        if a in ours.constants:
            if problem := theirs.problem_of_constant(b, ours.array(a), *corrections.get(b, _NONE)):
                found.append(f"{a}: {problem}")
            continue
        partner[a] = b
        node, other = ours.producer.get(a), theirs.producer.get(b)
        if node is None or other is None:
            if a != b:
                found.append(f"{a} became {b}")
        elif list(node.output).index(a) != list(other.output).index(b) or not _same_operator(ours, node, theirs, other):
            found.append(f"{a}: its {node.op_type} became another {other.op_type}")
        else:
            if node.op_type == "Conv" and len(node.input) > 2 and node.input[1] in ours.constants:
                corrections[other.input[2]] = theirs.corrections(other, ours.array(node.input[1]))
            pending += zip(node.input, other.input)  # a Clip that became a Relu has fewer  # noqa: B905
    return found


def _exact(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
    """Nodes and constants of the postprocessing, serialized: none of them may change."""
    nodes = postprocessing_nodes(model)
    read = {name for node in nodes for name in node.input}
    constants = [value for value in model.graph.initializer if value.name in read]
    return [node.SerializeToString() for node in nodes], sorted(value.SerializeToString() for value in constants)


def _same_operator(ours: _Graph, node: NodeProto, theirs: _Graph, other: NodeProto) -> bool:
    if node.op_type == "Clip" and other.op_type == "Relu":  # the quantization behind it clips the upper end
        least, most = (float(ours.array(name)) for name in node.input[1:])
        return least == 0 and theirs.largest(other.output[0]) <= most * _SLACK
    return (
        node.op_type == other.op_type
        and [bool(name) for name in node.input] == [bool(name) for name in other.input]
        and sorted(x.SerializeToString() for x in node.attribute)
        == sorted(x.SerializeToString() for x in other.attribute)
    )


class _Graph:
    """A network's nodes and constants by name, with conversions skipped."""

    def __init__(self, network: onnx.ModelProto) -> None:
        self.constants = {value.name: value for value in network.graph.initializer}
        self.producer = {name: node for node in network.graph.node for name in node.output}
        self._quantizers = {node.input[0]: node for node in network.graph.node if node.op_type == "QuantizeLinear"}
        self._inputs = {value.name for value in network.graph.input}

    def array(self, name: str) -> np.ndarray:
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def origin(self, name: str) -> str:
        """The value that this value was converted from; itself where it is no conversion."""
        while (node := self.producer.get(name)) is not None:
            before = self.producer.get(node.input[0])
            to = next((x.i for x in node.attribute if x.name == "to"), None)
            if node.op_type == "Cast" and to in _FLOATS and node.input[0] not in self._inputs:
                name = node.input[0]
            elif node.op_type == "DequantizeLinear" and before is not None and self._undoes(node, before):
                name = before.input[0]
            else:
                break
        return name

    def _undoes(self, node: NodeProto, before: NodeProto) -> bool:
        """Whether a DequantizeLinear multiplies by what its QuantizeLinear divided by; pairs have a single scale."""
        return (
            before.op_type == "QuantizeLinear"
            and self.array(node.input[1]).size == 1
            and all(
                np.array_equal(self.array(a), self.array(b))
                for a, b in zip(node.input[1:], before.input[1:], strict=True)
            )
        )

    def largest(self, name: str) -> float:
        """The largest number that a value's QuantizeLinear leaves of it; infinite where it has no QuantizeLinear."""
        node = self._quantizers.get(name)
        return np.inf if node is None else self._span(node)[1]

    def _span(self, node: NodeProto) -> tuple[float, float]:
        """The least and the largest number that a QuantizeLinear or DequantizeLinear of one scale can represent."""
        scale, zero = (self.array(name) for name in node.input[1:])
        if self.constants[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN:
            low, high = -448.0, 448.0
        else:
            bounds = np.iinfo(zero.dtype)
            low, high = bounds.min - float(zero), bounds.max - float(zero)
        return low * float(scale), high * float(scale)

    def corrections(self, node: NodeProto, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest correction of a convolution's bias [O] for the rounding of its weight.

        A correction is the rounding error times the mean of each input channel, which lies in the input's 8-bit range.
        """
        data, rounded = (self.producer.get(name) for name in node.input[:2])
        if data is None or rounded is None or {data.op_type, rounded.op_type} != {"DequantizeLinear"}:
            return _NONE
        low, high = self._span(data)
        step = float(self.array(data.input[1]))  # the rounding of the zero point moves the range by half a step
        low, high = low - step, high + step
        before = self.producer.get(self.origin(node.input[0]))
        if before is not None and self._ends_at_zero(before):
            low = 0.0
        steps = self.array(rounded.input[0])
        if steps.shape != weight.shape:
            return _NONE  # the comparison of the weights finds this
        given = steps.astype(np.float32) * self.array(rounded.input[1]).reshape(-1, *[1] * (weight.ndim - 1))
        lost = (weight - given).reshape(*weight.shape[:2], -1).sum(axis=2)
        return np.minimum(lost * low, lost * high).sum(axis=1), np.maximum(lost * low, lost * high).sum(axis=1)

    def _ends_at_zero(self, node: NodeProto) -> bool:
        """Whether a node's output is never negative."""
        return node.op_type == "Relu" or (node.op_type == "Clip" and float(self.array(node.input[1])) == 0)

    def problem_of_constant(self, name: str, expected: np.ndarray, least: np.ndarray, most: np.ndarray) -> str | None:
        """Why a constant isn't `expected` plus a correction of `least` to `most`, rounded to its number format here.

        None where it is.
        """
        node, scale = self.producer.get(name), np.float32(1)
        if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            name, zero, scale = node.input[0], self.array(node.input[2]), self.array(node.input[1])
            axis = next((x.i for x in node.attribute if x.name == "axis"), 1)  # ONNX's default
            if scale.size > 1 and (axis != 0 or scale.shape != expected.shape[:1]):
                return f"has scales of the shape {scale.shape} along axis {axis}, not one for each output channel"
            scale = scale.reshape(-1, *[1] * (expected.ndim - 1))
            if zero.astype(np.float32).any():
                return "has a zero point"
            largest = np.abs(expected).reshape(len(scale), -1).max(axis=1)
            if (scale.ravel() > _SLACK * np.maximum(largest / _FEWEST_STEPS, _LEAST_SCALE)).any():
                return "has a scale that leaves bits unused"
        elif name not in self.constants:
            return "was a constant and is now computed"
        given, kind = self.array(name), self.constants[name].data_type
        if given.shape != expected.shape:
            return f"has the shape {given.shape}, not {expected.shape}"
        if expected.dtype != np.float32:
            return None if np.array_equal(given, expected) else "has another value"
        if kind not in _ROUNDING:
            return f"is of another type ({TensorProto.DataType.Name(kind)})"
        by_number, around_zero = _ROUNDING[kind]
        corrected = 2.0**-23 * (most > least)  # a corrected number is a sum in float32
        added = given.astype(np.float32) * scale - expected
        away = np.maximum(np.maximum(least - added, added - most), 0)
        beyond = away > _SLACK * ((by_number + corrected) * np.abs(expected) + around_zero * scale)
        return f"{beyond.sum()} of {beyond.size} numbers differ by more than rounding" if beyond.any() else None
