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

    The two forms of NMS find the same rows. Group norms are the same up to the rounding of float32. The copy has the
    model's own metadata, so that a hash of the graph in it isn't the copy's.
    """
    joined = join_group_norms(model)
    match processor:
        case "cpu":
            return split_group_norms(with_nms(joined, thresholds, BLOCKS))
        case "gpu":
            return with_nms(joined, thresholds, WIDE)
        case _:
            unknown_name(processor, "processor", Processor)
