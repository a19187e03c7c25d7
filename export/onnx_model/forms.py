"""The forms of a deployed graph for CPUs and for GPUs: the same function of operators that suit the processor."""

from __future__ import annotations

import onnx

from runtime.manifest import Thresholds
from runtime.names import unknown_name

from .group_norm import join_group_norms, split_group_norms
from .nms import BLOCKS, WIDE, with_nms
from .processor import Processor


def for_processor(model: onnx.ModelProto, thresholds: Thresholds, processor: Processor) -> onnx.ModelProto:
    """A copy of the model in the form for a processor, whatever form it has. It may lack NMS so far.

    Its metadata is the model's own, so that a hash of the graph in it isn't the copy's.
    """
    match processor:
        case "cpu":
            return split_group_norms(with_nms(model, thresholds, BLOCKS))
        case "gpu":
            return join_group_norms(with_nms(model, thresholds, WIDE))
        case _:
            unknown_name(processor, "processor", Processor)
