"""Runs the nodes of NMS (`export/onnx_model/nms.py`) as operators of torch, which CUDA graphs can record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor

MOST_NUMBERS = 8  # axes, counts, pads: two for each side of a map
_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
_OF_TWO = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "MatMul": torch.matmul,
}


class TorchGraph:
    """An ONNX model as a function of torch tensors on a device. Nothing is copied from the host when it runs.

    Shapes, axes and counts must be constants of the model. Raises NotImplementedError for an operator that NMS lacks.
    """

    def __init__(self, model: onnx.ModelProto, device: str) -> None:
        self._nodes = [(node, _attributes(node)) for node in model.graph.node]
        arrays = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
        self._constants = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
        self._numbers = {name: array.ravel().tolist() for name, array in arrays.items() if array.size <= MOST_NUMBERS}
        self._outputs = [value.name for value in model.graph.output]

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's outputs by name."""
        values = self._constants | inputs
        for node, attributes in self._nodes:
            given = [values[name] for name in node.input]
            numbers = [self._numbers.get(name, []) for name in node.input]
            values.update(zip(node.output, _run(node.op_type, given, numbers, attributes), strict=True))
        return {name: values[name] for name in self._outputs}


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _run(
    kind: str, given: Sequence[Tensor], numbers: Sequence[list[Any]], attributes: dict[str, Any]
) -> Sequence[Tensor]:
    """The outputs of an operator; `numbers` are the values of those inputs that are small constants."""
    if kind in _OF_TWO:
        return [_OF_TWO[kind](given[0], given[1])]
    x = given[0]
    axis = attributes.get("axis", 0)
    match kind:
        case "Identity":
            return [x]
        case "Unsqueeze":
            return [x.unsqueeze(numbers[1][0])]
        case "Squeeze":
            return [x.squeeze(numbers[1][0])]
        case "Pad":
            dims = x.dim()
            pairs = [side for dim in reversed(range(dims)) for side in (numbers[1][dim], numbers[1][dims + dim])]
            return [F.pad(x, pairs, value=float(numbers[2][0]) if len(given) > 2 else 0.0)]
        case "TopK":
            return list(x.topk(numbers[1][0], dim=axis))
        case "GatherND":  # with batch_dims=1
            rows = given[1]  # [B, m, 1]
            return [x.gather(1, rows.expand(-1, -1, x.shape[2]) if x.dim() == 3 else rows.squeeze(2))]
        case "Cast":
            return [x.to(_TYPES[attributes["to"]])]
        case "Concat":
            return [torch.cat(list(given), dim=axis)]
        case "Where":
            return [torch.where(x, given[1], given[2])]
        case "Split":
            return list(x.split(numbers[1] if len(given) > 1 else x.shape[axis] // attributes["num_outputs"], axis))
        case "ReduceSum":
            return [x.sum(numbers[1][0], keepdim=bool(attributes.get("keepdims", 1)), dtype=x.dtype)]
        case "ReduceMin":
            return [x.amin(numbers[1][0], keepdim=bool(attributes.get("keepdims", 1)))]
        case "Slice":
            (start,), (end,), (dim,) = numbers[1:4]
            return [x.narrow(dim, start, end - start)]
        case "Transpose":
            return [x.permute(*attributes["perm"])]
        case "Relu":
            return [x.relu()]
        case "HardSigmoid":
            return [(x * attributes["alpha"] + attributes["beta"]).clamp(0, 1)]
        case _:
            raise NotImplementedError(f"{kind}, which NMS has no node of")
