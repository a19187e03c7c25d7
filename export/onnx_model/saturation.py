"""Whether a kernel that adds two 8-bit products in 16 bits can saturate, proved from a file's weights.

x86 without VNNI multiplies unsigned by signed bytes and adds two neighbouring products in 16 bits, where a sum above
32767 becomes 32767 (`vpmaddubsw`). Which products are neighbours depends on the layout in which the kernel packs its
weights. The proof therefore takes any two weights of an output channel, each times the largest byte: QuantizeLinear
clips activations to the range of their type and to nothing narrower, and signed activations are first moved by 128,
because the instruction takes unsigned ones. Where no such sum reaches 32768, every kernel sums exactly on every
processor.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from .network import cut_network

LARGEST_BYTE = 255
LARGEST_SUM = 2**15 - 1
PAIR_LIMIT = LARGEST_SUM // LARGEST_BYTE  # most steps of two weights of one sign: 128, because 255 · 128 = 32640


def saturation_free_scales(weights: np.ndarray, most: float) -> np.ndarray:
    """The least scales [O] at which no two weights of an output channel exceed PAIR_LIMIT steps, and none `most` steps.

    weights float [O, …]. The two largest weights of one sign decide: a channel with one outlier keeps nearly all of
    its 8 bits, a channel with two equally large weights keeps 7.
    """
    largest = np.stack([_two_largest(weights), _two_largest(-weights)])  # [sign, O, 2]
    alone = largest[:, :, 0].max(axis=0) / most
    together = largest.sum(axis=2).max(axis=0)
    scales = alone
    too_much = np.ones(len(weights), bool)
    # Rounding adds at most half a step to each weight, so the last bound always holds.
    for bound in np.linspace(PAIR_LIMIT, PAIR_LIMIT - 1, 5):
        scales = np.where(too_much, np.maximum(alone, together / bound), scales)
        steps = np.rint(largest / np.maximum(scales, np.finfo(scales.dtype).tiny)[:, None])
        too_much = (steps.sum(axis=2) > PAIR_LIMIT).any(axis=0)
    return scales


def largest_sums(model: onnx.ModelProto) -> dict[str, int]:
    """The largest sum of two products, by magnitude, of every 8-bit integer convolution; by the name of its output."""
    return largest_sums_of_network(cut_network(model))


def largest_sums_of_network(network: onnx.ModelProto) -> dict[str, int]:
    """`largest_sums` for a network that was cut out before."""
    constants = {value.name: value for value in network.graph.initializer}
    weights = {
        node.output[0]: np.asarray(numpy_helper.to_array(constants[node.input[0]]))
        for node in network.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    found = {}
    for node in network.graph.node:
        steps = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if steps is not None and np.issubdtype(steps.dtype, np.integer):  # float8 is not
            wide = steps.astype(np.int64)
            pairs = max(int(_two_largest(side).sum(axis=1).max()) for side in (wide, -wide))
            found[node.output[0]] = LARGEST_BYTE * pairs
    return found


def sums_fit_16_bits(model: onnx.ModelProto) -> bool:
    """Whether no sum of two products in the model's 8-bit convolutions can saturate."""
    return max(largest_sums(model).values(), default=0) <= LARGEST_SUM


def _two_largest(weights: np.ndarray) -> np.ndarray:
    """The two largest numbers of each output channel [O, 2]; negative and missing numbers count as 0."""
    flat = np.maximum(weights.reshape(len(weights), math.prod(weights.shape[1:])), 0)
    padded = np.concatenate([flat, np.zeros((len(flat), 2), flat.dtype)], axis=1)
    return np.partition(padded, padded.shape[1] - 2, axis=1)[:, -2:][:, ::-1]
