"""ONNX Runtime sessions on models in memory, such as a network that was cut out of a deployed file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnxruntime


def open_session(model: onnx.ModelProto, keep_layout: bool = False) -> onnxruntime.InferenceSession:
    """A session on the CPU, with the optimization disabled that breaks float8 models.

    With `keep_layout`, tensors keep their layouts. Otherwise ONNX Runtime chooses blocked ones by what surrounds a
    convolution, so that the same convolutions in two graphs may sum in different orders.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: the warnings are about graph rewrites that no user can act on
    if keep_layout:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ReluQuantRewrite"],  # it drops a ReLU before a float8 quantization (seen up to 1.32)
    )
