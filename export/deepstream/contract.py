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
# nvinfer drops a box whose lower edge lies below the frame's, unless the key `crop-objects-to-roi-boundary` has it crop
# the box. The key is in the sources of 8.0 and 9; those of 7.1 were not at hand, so there the graph limits the boxes.
CROPPING_VERSIONS: tuple[Version, ...] = ("8.0", "9")
# The key `strongly-typed` is in nvinfer's sources from 9 on. Earlier versions warn of it and build with other types.
STRONGLY_TYPED_VERSIONS: tuple[Version, ...] = ("9",)
BOX_MARGIN = 1 / 64  # px of the canvas; more than what nvinfer's sum of upper edge and height is rounded by


def resized_frame(frame_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width that nvinfer scales a frame to, by the arithmetic of its `get_converted_buffer`."""
    (canvas_height, canvas_width), (height, width) = canvas_hw, (side // 2 * 2 for side in frame_hw)
    if canvas_width * height / width <= canvas_height:
        return int(canvas_width * height / width), canvas_width
    return canvas_height, int(canvas_height * width / height)


def box_limits(frame_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> tuple[float, float]:
    """The largest y and x, in canvas pixels, of a box that nvinfer takes to end inside the frame."""
    height, width = resized_frame(frame_hw, canvas_hw)
    return height - BOX_MARGIN, float(width)
