"""Whether the ranges of 8-bit values fit images, measured value by value in the float32 network: errors don't add up.

A range that is too narrow clips, and a range that is too wide leaves few steps for most numbers. Both show as the
difference between a value and the same value rounded to 8 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..onnx_model.file import INPUT_NAMES, expose_values
from ..onnx_model.network import ModelError, cut_network
from ..onnx_model.session import open_session
from .checks import RANGES, UNFIT, Check
from .images import Case
from .tolerance import RANGE_LIMIT


class Range(NamedTuple):
    """The 8-bit range of one value: a scale and a zero point."""

    value: str  # its name in the float32 network
    scale: np.float32
    zero: np.ndarray  # zero point, of the 8-bit type

    def rounded(self, numbers: np.ndarray) -> np.ndarray:
        """What QuantizeLinear and DequantizeLinear make of these numbers."""
        steps = numbers / self.scale
        if self.zero.dtype == ml_dtypes.float8_e4m3fn:
            return np.clip(steps, -448, 448).astype(self.zero.dtype).astype(np.float32) * self.scale
        bounds, zero = np.iinfo(self.zero.dtype), np.float32(self.zero)
        return (np.clip(np.rint(steps) + zero, bounds.min, bounds.max) - zero) * self.scale


def quantization_ranges(model: onnx.ModelProto) -> list[Range]:
    """The range of every QuantizeLinear in a deployed model's network."""
    network = cut_network(model)
    constants = {value.name: value for value in network.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in network.graph.node if node.op_type == "Cast"}
    found = []
    for node in network.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (np.asarray(numpy_helper.to_array(constants[name])) for name in node.input[1:])
            if constants[node.input[2]].data_type == TensorProto.FLOAT8E4M3FN:
                zero = zero.astype(ml_dtypes.float8_e4m3fn)
            found.append(Range(casts.get(node.input[0], node.input[0]), np.float32(scale), zero))
    return found


class RangeErrors:
    """Measures the rounding errors of ranges in the float32 network. Raises ModelError for values that it lacks."""

    def __init__(self, source: onnx.ModelProto, ranges: list[Range]) -> None:
        visible = expose_values(cut_network(source), [found.value for found in ranges])
        if visible is None:
            raise ModelError("the converted file quantizes values that the float32 file doesn't have: convert it again")
        self._ranges = ranges
        self._session = open_session(visible)

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """Root mean square error of each value in 8 bits, by its root mean square; images uint8 [B, H, W, 3]."""
        given = self._session.run([found.value for found in self._ranges], {INPUT_NAMES[0]: images})
        errors = {}
        for found, numbers in zip(self._ranges, given, strict=True):
            error = np.sqrt(np.mean(np.square(found.rounded(numbers) - numbers)))
            errors[found.value] = float(error / max(np.sqrt(np.mean(np.square(numbers))), 1e-10))
        return errors

    def check(self, case: Case) -> Check:
        """The largest error of all values, on one batch."""
        errors = self(case.images)
        worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
        return Check(case.name, RANGES, len(errors), errors[worst], RANGE_LIMIT, f"{worst}: {UNFIT}")
