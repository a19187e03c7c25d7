"""The precision of a model's convolutions: which must stay float, what the graph has, whether it fits the manifest.

What may be quantized at all is decided here (`must_stay_float`, `grouped_convolutions`); the scales are decided in
`quantization/qdq.py`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx
from onnx import NodeProto, TensorProto

from runtime.bounds import Count, Name, Sha256
from runtime.errors import UserError
from runtime.json_file import parse_json
from runtime.manifest import Precision
from runtime.records import record_from_dict

from .network import ancestors, dense_map_names

QUANTIZATION_KEY = "atss_toolkit.quantization"  # in an ONNX file's metadata
_NAMES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}


@dataclasses.dataclass(frozen=True)
class QuantizationNote:
    """How a file was quantized: the note that the conversion leaves in its metadata."""

    target: Name  # "tensorrt", "cpu" or "cpu-vnni"
    method: Name  # that chose the ranges
    images: Count  # how many were calibrated on
    images_sha256: Sha256
    in_float: tuple[Name, ...]  # outputs of the convolutions that stayed in float for accuracy


def read_quantization_note(model: onnx.ModelProto) -> QuantizationNote | None:
    """The note of a model's quantization; None where it has none, or an unreadable one."""
    for entry in model.metadata_props:
        if entry.key == QUANTIZATION_KEY:
            try:
                note = parse_json(entry.value, "the note of the quantization")
                return record_from_dict(QuantizationNote, note, "the note of the quantization")
            except UserError:
                return None
    return None


def count_convolutions(model: onnx.ModelProto) -> Counter[str]:
    """The number of convolutions and matrix products with weights in each precision.

    "int8" has int8 weights and activations, "uint8" has int8 weights and uint8 activations (which TensorRT refuses),
    and "mixed" has 8-bit weights with wider activations, which no kernel multiplies in 8 bits.
    """
    return Counter(convolution_precisions(model).values())


def convolution_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """The precision of each convolution, as `count_convolutions` names it, by the name of its output."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {value.name: value.data_type for value in graph.initializer}
    dequantized = {
        node.output[0]: types.get(node.input[2], TensorProto.UNDEFINED)
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    constants = {value.name for value in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
            continue
        data, weight = node.input[:2]
        if weight in dequantized and data in dequantized:
            kind = dequantized[data]
        elif weight in dequantized:
            found[node.output[0]] = "mixed"
            continue
        elif weight in constants:
            kind = types[weight]
        elif node.op_type == "MatMul":  # NMS multiplies matrices of zeros and ones
            continue
        else:
            kind = types.get(data, TensorProto.UNDEFINED)
        found[node.output[0]] = _NAMES.get(kind, "unknown")
    return found


def format_counts(counts: Mapping[str, int]) -> str:
    """Counts as a phrase such as "101 int8, 15 fp16", the largest first."""
    return ", ".join(f"{count} {name}" for name, count in Counter(counts).most_common())


def count_wrong_convolutions(model: onnx.ModelProto, precision: Precision) -> int:
    """The number of convolutions with another precision than the file's, plus that of values wrongly rounded to 8 bits.

    In a quantized file some convolutions are float: those that must be, and those that the conversion noted. Where the
    noted ones are the majority none of them is excused, because the file is quantized in name only.
    """
    found = convolution_precisions(model)
    quantizers = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    if precision not in ("int8", "fp8"):
        return sum(kind != precision for kind in found.values()) + len(quantizers)
    whole = must_stay_float(model.graph.node, dense_map_names(model))
    rounded = quantizers & whole
    if precision == "fp8":
        whole |= grouped_convolutions(model.graph.node)
    expected = ("int8", "uint8") if precision == "int8" else (precision,)
    odd = {name for name, kind in found.items() if kind not in expected}
    noted = read_quantization_note(model)
    excused = whole
    if noted is not None and 2 * len(odd - whole) <= len(found.keys() - whole):
        excused = whole | odd.intersection(noted.in_float)
    wrong = [kind not in ("fp32", "fp16") if name in excused else name in odd for name, kind in found.items()]
    return sum(wrong) + len(rounded)


def must_stay_float(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> set[str]:
    """Outputs of the nodes that are never quantized.

    These are the convolutions that make the dense maps, the convolutions that place the samples of deformable ones, and
    the nodes behind both. `nodes` and `outputs` are the network's.
    """
    nodes = list(nodes)
    positions = [node.input[1] for node in nodes if node.op_type == "GridSample"]
    return {name for node in ancestors(nodes, [*outputs, *positions], until=("Conv",)) for name in node.output}


def grouped_convolutions(nodes: Iterable[NodeProto]) -> set[str]:
    """Outputs of depthwise and other grouped convolutions, which stay float in fp8 files."""
    return {
        node.output[0]
        for node in nodes
        if node.op_type == "Conv" and any(x.name == "group" and x.i > 1 for x in node.attribute)
    }
