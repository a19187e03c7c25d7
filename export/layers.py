"""The precision that an ONNX file has, counted in its graph, whatever its manifest says."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto

from runtime.manifest import Manifest

_NAMES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}


def convolutions(model: onnx.ModelProto) -> Counter[str]:
    """How many convolutions and matrix products with weights compute in which precision.

    "int8": int8 weights and activations, "uint8": int8 weights and uint8 activations (which TensorRT refuses), "mixed":
    weights of 8 bits with activations of more, which no kernel multiplies in 8 bits.
    """
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {value.name: value.data_type for value in graph.initializer}
    dequantized = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            dequantized[node.output[0]] = types.get(node.input[2], TensorProto.UNDEFINED)
    constants = {value.name for value in graph.initializer}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
            continue
        data, weight = node.input[:2]
        if weight in dequantized and data in dequantized:
            found[_NAMES.get(dequantized[data], "unknown")] += 1
        elif weight in dequantized or data in dequantized:
            found["mixed"] += 1
        elif weight in constants:
            found[_NAMES.get(types[weight], "unknown")] += 1
        elif node.op_type != "MatMul":  # of NMS, between 0/1 matrices
            found[_NAMES.get(types.get(data, TensorProto.UNDEFINED), "unknown")] += 1
    return found


def summary(counts: Counter[str]) -> str:
    """One phrase, such as "101 int8, 15 fp16"."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def claims(manifest: Manifest) -> frozenset[str]:
    """What the convolutions of a file of this precision compute in."""
    return frozenset(("int8", "uint8") if manifest.precision == "int8" else (manifest.precision,))
