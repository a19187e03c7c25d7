"""Sessions of ONNX Runtime on models in memory: pieces of a deployed graph, or one that shows its inner values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnxruntime


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """On the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings tell of graph rewrites that nobody can act on
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ReluQuantRewrite"],  # up to 1.32 it drops a ReLU before a float8 quantization
    )
