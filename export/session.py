"""Sessions of ONNX Runtime on models in memory: pieces of a deployed graph, or one that shows its inner values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnxruntime


def open_session(model: onnx.ModelProto, rewrite: bool = True) -> onnxruntime.InferenceSession:
    """On the CPU; without `rewrite` the operators run as they stand in the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings tell of graph rewrites that nobody can act on
    if not rewrite:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
