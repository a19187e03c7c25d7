"""From a traced program to ONNX, without tracing it again.

`torch.onnx.export` first has a program functionalized and decomposed (`ExportedProgram.run_decompositions`): two more
traces, which take longer than the first. A detector consists of operators that the exporter translates as they are.
What keeps it from that is little: in-place activations and sums become their functional counterparts here, and `to`
becomes a cast. Programs that need more are decomposed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnxscript import INT64, opset21
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

OPSET = 21  # the first whose GroupNormalization exporters and TensorRT both treat as one operator

logger = logging.getLogger(__name__)

_aten = torch.ops.aten
_op: Any = opset21
# What the trace assumed of sizes and types. The exporter doesn't translate these checks.
_CHECKS = {_aten._assert_scalar.default, _aten._assert_tensor_metadata.default}
_SYNONYMS = {  # the exporter translates the second operators only
    _aten.__and__.Tensor: _aten.bitwise_and.Tensor,
    _aten.__or__.Tensor: _aten.bitwise_or.Tensor,
    _aten.detach_.default: _aten.detach.default,  # it writes no numbers
}


def translate(program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]) -> onnx.ModelProto:
    """The program as ONNX with these names, weights included. Edits the program. Raises torch's OnnxExporterError."""
    if make_functional(program):
        program.run_decompositions = lambda *_, **__: program  # the exporter calls it
        try:
            return _translate(program, input_names, output_names)
        except torch.onnx.OnnxExporterError as error:
            logger.info(f"tracing again: the exporter needs an operator decomposed ({str(error).splitlines()[-1]})")
        del program.run_decompositions
    return _translate(program, input_names, output_names)


def _translate(program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str]) -> onnx.ModelProto:
    translated = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=input_names,
        output_names=output_names,
        custom_translation_table=_TRANSLATIONS,
        verbose=False,
    )
    assert translated is not None
    return translated.model_proto


def make_functional(program: ExportedProgram) -> bool:
    """Edit the program's graph so that no operation writes into its arguments, with the same results.

    Returns False and changes nothing where that takes more than exchanging operators: the memory that an operation
    writes into is read afterwards, belongs to an input or a weight or has another type than the other arguments, or
    the operator has no functional counterpart.
    """
    nodes = list(program.graph.nodes)
    place = {node: position for position, node in enumerate(nodes)}
    sharing: dict[int, list[Node]] = defaultdict(list)  # memory → the nodes whose values lie in it
    counterparts: dict[Node, OpOverload] = {}
    for node in nodes:
        if _writes(node):
            counterpart = _counterpart(node) if _of_one_type(node) else None
            written = [other for memory in _memories(node.all_input_nodes[0]) for other in sharing[memory]]
            is_read = any(place[user] > place[node] for other in written for user in other.users)
            if counterpart is None or is_read or any(other.op != "call_function" for other in written):
                return False
            counterparts[node] = counterpart
        for memory in _memories(node):
            sharing[memory].append(node)
    for node in nodes:
        if node.target in _CHECKS:
            program.graph.erase_node(node)
        elif node in counterparts:
            node.target = counterparts[node]
        elif node.target in _SYNONYMS:
            node.target = _SYNONYMS[node.target]
        elif node.target is _aten.to.dtype:
            _make_cast(node)
    program.graph.eliminate_dead_code()  # what only the checks read
    program.graph_module.recompile()
    return True


def _writes(node: Node) -> bool:
    """Whether a node may write into its arguments. A branch or loop may."""
    if node.op != "call_function" or node.target in _CHECKS or node.target in _SYNONYMS:
        return False
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable
    return isinstance(node.target, HigherOrderOperator)


def _of_one_type(node: Node) -> bool:
    """Whether a node's tensors have one type: the functional operator would widen what the in-place one rounds."""
    return len({other.meta["val"].dtype for other in node.all_input_nodes if _is_tensor(other)}) == 1


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _counterpart(node: Node) -> OpOverload | None:
    """The operator that returns what an in-place operator (named like `relu_`) writes; None where there is none."""
    target = node.target
    if not isinstance(target, OpOverload):
        return None
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(_aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _memories(node: Node) -> set[int]:
    """The addresses of the traced tensors' storages: views of one tensor have the same."""
    tensors = (value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, torch.Tensor))
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def _make_cast(node: Node) -> None:
    """Replace `to`, whose result may be its argument itself, with a cast, or with a copy where the type is the same."""
    argument, dtype = node.args[:2]
    assert isinstance(argument, Node)
    if argument.meta["val"].dtype == dtype:
        node.target, node.args, node.kwargs = _aten.clone.default, (argument,), {}
    else:
        node.target, node.args, node.kwargs = _aten._to_copy.default, (argument,), {"dtype": dtype}


# The exporter's own translations compute the new shape from the old one by five nodes each.


def _flatten(self: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    rank = len(self.shape)
    return _reshape(self, start_dim % rank, end_dim % rank, [-1])


def _unflatten(self: Any, dim: int, sizes: Sequence[INT64]) -> Any:
    axis = dim % len(self.shape)
    return _reshape(self, axis, axis, [size if isinstance(size, int) else -1 for size in sizes])


def _reshape(tensor: Any, first: int, last: int, sizes: list[int]) -> Any:
    """The tensor with the axes `first` to `last` replaced by axes of these sizes; −1 is what remains, 0 keeps a size.

    The axes before keep their place.
    """
    behind = list(tensor.shape[last + 1 :])
    kept: list[int] = [0] * first
    if all(isinstance(side, int) for side in behind):
        return _op.Reshape(tensor, _op.Constant(value_ints=[*kept, *sizes, *behind]))
    shape = _op.Concat(_op.Constant(value_ints=[*kept, *sizes]), _op.Shape(tensor, start=last + 1), axis=0)
    return _op.Reshape(tensor, shape)


# Integers are divided for indices and sizes alone. None is negative, so the exporter's seven nodes for a floor are one.


def _divide(dividend: Any, divisor: Any) -> Any:
    quotient = _op.Div(dividend, divisor)
    return quotient if dividend.dtype.is_integer() else _op.Floor(quotient)


def _remainder(dividend: Any, divisor: Any) -> Any:
    if dividend.dtype.is_integer():
        return _op.Mod(dividend, divisor)
    return _op.Sub(dividend, _op.Mul(_op.Floor(_op.Div(dividend, divisor)), divisor))


_TRANSLATIONS: dict[Any, Any] = {
    _aten.flatten.using_ints: _flatten,
    _aten.unflatten.int: _unflatten,
    _aten.floor_divide.default: _divide,
    _aten.remainder.Scalar: _remainder,
}
