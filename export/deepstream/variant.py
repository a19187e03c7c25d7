"""From a deployed graph to the graph that DeepStream runs: the same network and NMS behind other inputs and outputs.

B images, H × W the canvas, N detections.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.manifest import METADATA_KEY, InputShapes, Manifest, to_json

from ..onnx_model.file import INPUT_NAMES, graph_sha256
from ..onnx_model.forms import for_processor
from ..onnx_model.network import ModelError
from ..onnx_model.simplify import remove_unused
from .contract import INPUT, LEAST_BOX_NUMBER, OUTPUTS

_PREFIX = "deepstream/"  # of the names of new nodes and values
_TO_PLANES = [0, 3, 1, 2]
_AXES = {0: 0, 1: 2, 2: 3, 3: 1}  # of [B, H, W, 3] in [B, 3, H, W]
_YXYX = (1, 0, 3, 2)


def to_variant(
    model: onnx.ModelProto,
    manifest: Manifest,
    canvas_hw: tuple[int, int] | None = None,
    limits_yx: tuple[float, float] | None = None,
) -> onnx.ModelProto:
    """A copy of a deployed model with DeepStream's inputs and outputs, in the form for GPUs, its manifest included.

    - `images` float32 [B, 3, H, W], RGB, 0–255, in place of uint8 [B, H, W, 3]
    - `image_sizes` is gone: the whole canvas counts as image
    - `num_detections` int32 [B, 1], `detection_boxes` float32 [B, N, 4] (y1, x1, y2, x2 in canvas pixels; the numbers
      of unused rows are 2), `detection_scores` float32 [B, N], `detection_classes` float32 [B, N], in this order

    `canvas_hw` fixes the canvas, within the model's range. `limits_yx` are the largest numbers of a box, for frames of
    one size that fill the canvas in part (`contract.box_limits`). Raises ModelError for a model of another interface,
    and for a canvas that the model doesn't take.
    """
    if manifest.interface != "toolkit":
        raise ModelError(f"the model is made for {manifest.interface} already: give the file that it was made from")
    shapes = _fixed(manifest, canvas_hw)
    variant = for_processor(model, manifest.thresholds, "gpu")
    _take_planes(variant.graph, shapes)
    _take_whole_canvas(variant.graph, shapes)
    _give_parser_outputs(variant.graph, limits_yx)
    remove_unused(variant)
    if shapes.has_one_canvas:
        _forget_sides(variant.graph)
    variant = onnx.shape_inference.infer_shapes(variant, strict_mode=True, data_prop=True)
    onnx.checker.check_model(variant, full_check=True)
    stated = dataclasses.replace(
        manifest, interface="deepstream", inputs=shapes, graph_sha256=graph_sha256(variant), ap=None
    )
    for entry in variant.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = to_json(stated)
    return variant


def _fixed(manifest: Manifest, canvas_hw: tuple[int, int] | None) -> InputShapes:
    """The model's shapes with this canvas alone. Raises ModelError where the model doesn't take it."""
    shapes, divisor = manifest.inputs, manifest.preprocess.size_divisor
    if canvas_hw is None:
        return shapes
    height, width = canvas_hw
    if height % divisor or width % divisor or shapes.nearest_canvas(canvas_hw) != (height, width):
        raise ModelError(
            f"--canvas {height} {width}: expected height and width in multiples of {divisor}, within {shapes.summary()}"
        )
    return dataclasses.replace(shapes, height_min=height, height_max=height, width_min=width, width_max=width)


def _take_planes(graph: onnx.GraphProto, shapes: InputShapes) -> None:
    """Let `images` be float planes: what turned the pixels into float planes goes."""
    images = next(value for value in graph.input if value.name == INPUT)
    batch, height, width, channels = (images.type.tensor_type.shape.dim[axis] for axis in range(4))
    dims = [_size(batch), channels.dim_value, _size(height), _size(width)]
    if shapes.has_one_canvas:
        dims[2:] = shapes.largest_canvas
    readers = [node for node in graph.node if INPUT in node.input]
    casts = {node.output[0]: node for node in readers if node.op_type == "Cast"}
    planes = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in casts]
    others = {node.output[0] for node in graph.node if set(node.input) & casts.keys()}
    if not planes or others != {node.output[0] for node in planes} or any(_perm(node) != _TO_PLANES for node in planes):
        raise ModelError("the graph doesn't begin with the cast and the transposition of this toolkit's exports")
    for node in planes:  # the cast remains: of half precision it rounds the pixels, of float32 it does nothing
        node.CopyFrom(onnx.helper.make_node("Identity", [node.input[0]], node.output, node.name))
    for value in graph.value_info:
        if value.name in casts:
            value.type.tensor_type.ClearField("shape")
    for node in readers:
        if node.op_type == "Shape":
            _shape_of_planes(node)
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, dims))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param


def _perm(node: NodeProto) -> list[int]:
    return next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")


def _shape_of_planes(node: NodeProto) -> None:
    """Let a node that reads one side of [B, H, W, 3] read it of [B, 3, H, W]. Raises ModelError for several sides."""
    places = {attribute.name: attribute.i for attribute in node.attribute}
    start, end = places.get("start", 0), places.get("end", 4)
    if end != start + 1:
        raise ModelError("the graph reads several sides of its canvas at once, unlike this toolkit's exports")
    axis = _AXES[start]
    node.CopyFrom(onnx.helper.make_node("Shape", node.input, node.output, node.name, start=axis, end=axis + 1))


def _take_whole_canvas(graph: onnx.GraphProto, shapes: InputShapes) -> None:
    """Compute `image_sizes` int32 [B, 2] from the canvas."""
    sides, sizes = f"{_PREFIX}sides", INPUT_NAMES[1]
    nodes = []
    if shapes.has_one_canvas:
        graph.initializer.append(numpy_helper.from_array(np.array(shapes.largest_canvas, np.int32), sides))
    else:
        nodes += [
            onnx.helper.make_node("Shape", [INPUT], [f"{sides}_int64"], f"{sides}_int64", start=2, end=4),
            onnx.helper.make_node("Cast", [f"{sides}_int64"], [sides], sides, to=TensorProto.INT32),
        ]
    graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), f"{_PREFIX}two"))
    nodes += [
        onnx.helper.make_node("Shape", [INPUT], [f"{_PREFIX}batch"], f"{_PREFIX}batch", start=0, end=1),
        onnx.helper.make_node(
            "Concat", [f"{_PREFIX}batch", f"{_PREFIX}two"], [f"{sizes}_shape"], f"{sizes}_shape", axis=0
        ),
        onnx.helper.make_node("Expand", [sides, f"{sizes}_shape"], [sizes], sizes),
    ]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *kept])


def _give_parser_outputs(graph: onnx.GraphProto, limits_yx: tuple[float, float] | None) -> None:
    """Replace the outputs by those of DeepStream's parser."""
    given = {value.name: value for value in graph.output}
    rows = given["detection_boxes"].type.tensor_type.shape.dim[1].dim_value
    batch = _size(given["detection_boxes"].type.tensor_type.shape.dim[0])
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name in ("detection_boxes", "detection_classes"):
                node.output[index] = f"{_PREFIX}{name}"
    boxes, classes = f"{_PREFIX}detection_boxes", f"{_PREFIX}detection_classes"
    constants: dict[str, np.ndarray] = {
        "yxyx": np.array(_YXYX, np.int64),
        "last": np.array([2], np.int64),
        "none": np.array(0, np.int32),
        "least": np.array(LEAST_BOX_NUMBER, np.float32),
    }
    kept = f"{_PREFIX}turned"
    limited: list[tuple[str, list[str], str, dict[str, Any]]] = []
    if limits_yx is not None:
        constants["limits"] = np.array([*limits_yx, *limits_yx], np.float32)
        limited = [("Min", [kept, f"{_PREFIX}limits"], f"{_PREFIX}limited", {})]
        kept = f"{_PREFIX}limited"
    graph.initializer.extend(numpy_helper.from_array(value, f"{_PREFIX}{name}") for name, value in constants.items())
    operations: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Gather", [boxes, f"{_PREFIX}yxyx"], f"{_PREFIX}turned", {"axis": 2}),
        *limited,
        ("Less", [classes, f"{_PREFIX}none"], f"{_PREFIX}unused", {}),
        ("Unsqueeze", [f"{_PREFIX}unused", f"{_PREFIX}last"], f"{_PREFIX}unused_rows", {}),
        ("Where", [f"{_PREFIX}unused_rows", f"{_PREFIX}least", kept], "detection_boxes", {}),
        ("Cast", [classes], "detection_classes", {"to": TensorProto.FLOAT}),
    ]
    for operator, inputs, output, attributes in operations:
        graph.node.append(onnx.helper.make_node(operator, inputs, [output], output, **attributes))
    del graph.output[:]
    kinds = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT)
    shapes = ([batch, 1], [batch, rows, 4], [batch, rows], [batch, rows])
    for name, kind, shape in zip(OUTPUTS, kinds, shapes, strict=True):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))


def _forget_sides(graph: onnx.GraphProto) -> None:
    """Forget the shapes of inner values that name a side of the canvas, in place; their types stay.

    The types are needed: onnx doesn't infer that of a group normalization.
    """
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in graph.value_info:
        tensor = value.type.tensor_type
        if any(dim.dim_param not in ("", batch) for dim in tensor.shape.dim):
            tensor.ClearField("shape")
