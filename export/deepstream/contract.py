"""What DeepStream's nvinfer feeds to a model, and what its parser for EfficientDet reads.

nvinfer writes float32 pixels as planes into the first input: y = net-scale-factor · (x − offsets), with black where the
frame ends. `NvDsInferParseCustomEfficientDetTAO`, which is in DeepStream's own parser library, takes the outputs by
their order, and reads boxes as y1, x1, y2, x2 in pixels of the canvas and classes as floats. This module is free of
onnx, so that a command can describe its options.

Sources: `nvdsinfer_custombboxparser.cpp`, `gstnvinfer.cpp` and `nvdsinfer_model_builder.cpp` of DeepStream 9.1.
"""

from __future__ import annotations

from typing import Literal

Version = Literal["7.1", "8.0", "9"]

PARSER = "NvDsInferParseCustomEfficientDetTAO"
PARSER_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser.so"
NET_SCALE_FACTOR = 1.0  # the graph normalises: each channel has a deviation of its own, and nvinfer has one factor
OFFSETS = (0.0, 0.0, 0.0)
PAD_VALUE = (0, 0, 0)  # nvinfer pads with black and with nothing else
INPUT = "images"  # float32 [B, 3, H, W], RGB, 0–255
OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
# The parser's `assert` ends the process where something was found and no number of any box reaches this.
LEAST_BOX_NUMBER = 2.0
# The key `strongly-typed` is in nvinfer's sources from 9 on. Earlier versions warn of it and build with other types.
STRONGLY_TYPED_VERSIONS: tuple[Version, ...] = ("9",)
