"""Stand-ins for a deployed detector: they find the red rectangle of an image, exactly, by the contract's names."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from runtime.detections import RawOutputs
from runtime.manifest import METADATA_KEY, InputShapes, Manifest, Preprocess, Thresholds, from_json, to_json

ROWS = 3  # detection rows of the fake graph; one is used
PREPROCESS = Preprocess(short_side=64, long_side=128)
ANY = InputShapes(batch_min=1, batch_max=16, height_min=32, height_max=512, width_min=32, width_max=512)
MANIFEST = Manifest(
    classes=("red", "other"),
    category_ids=(7, 9),
    preprocess=PREPROCESS,
    thresholds=Thresholds(),
    precision="fp32",
    inputs=ANY,
    recipe="fake",
    checkpoint_sha256="0" * 64,
    graph_sha256="1" * 64,
    toolkit_version="0.1.0",
    libraries={"torch": "2"},
)


def red_image(
    height: int = 60, width: int = 80, box: tuple[int, int, int, int] | None = (10, 20, 50, 40)
) -> np.ndarray:
    """A dark image with a red rectangle (x1, y1, x2, y2)."""
    image = np.full((height, width, 3), 20, np.uint8)
    if box is not None:
        x1, y1, x2, y2 = box
        image[y1:y2, x1:x2] = (250, 0, 0)
    return image


def write_images(folder: Path, sizes_hw: Sequence[tuple[int, int]]) -> Path:
    """A folder of such images, 0.png, 1.png, …; returns it."""
    folder.mkdir(exist_ok=True)
    for index, (height, width) in enumerate(sizes_hw):
        image = red_image(height, width, (8, 12, width - 8, height - 4))
        cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
    return folder


class RedBackend:
    """Finds the red rectangle in NumPy. Inexact on purpose: its rows are wrong, the candidates hold a duplicate."""

    def __init__(self, manifest: Manifest = MANIFEST) -> None:
        self.manifest = manifest
        self.description = "fake"
        self.concurrency = 1
        self.batches: list[tuple[int, ...]] = []  # shapes of `images` it was given
        self.is_closed = False

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        self.batches.append(images.shape)
        count = len(images)
        boxes, scores = np.zeros((count, 4, 4), np.float32), np.zeros((count, 4), np.float32)
        classes = np.full((count, 4), -1, np.int32)
        for index, (image, (height, width)) in enumerate(zip(images, image_sizes, strict=True)):
            ys, xs = np.nonzero(image[:height, :width, 0] > 200)
            if len(ys):
                box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
                boxes[index, :3] = box
                scores[index, :3] = 0.5, 0.9, 0.4
                classes[index, :3] = 0, 0, 1
        wrong = np.full((count, ROWS, 4), 1e6, np.float32)
        return RawOutputs(
            np.full((count, 1), ROWS, np.int32),
            wrong,
            wrong[..., 0],
            np.zeros((count, ROWS), np.int32),
            np.zeros((count, 1), np.int32),
            boxes,
            scores,
            classes,
        )

    def close(self) -> None:
        self.is_closed = True


def write_red_onnx(path: Path, manifest: Manifest | None = MANIFEST, drop: str | None = None) -> Path:
    """The same detector as an ONNX file with the contract's names (exact; score 0.9). `drop` leaves an output out."""
    import onnx
    from onnx import helper

    model = _red_model(drop)
    if manifest is not None:
        helper.set_model_props(model, {METADATA_KEY: to_json(manifest)})
    onnx.checker.check_model(model)
    return save_with_hash(model, path)


def save_with_hash(model: Any, path: Path) -> Path:
    """Write an ONNX model; a manifest in its metadata gets the hash of the graph as it is now."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = to_json(dataclasses.replace(from_json(entry.value, "test"), graph_sha256=_sha256(model)))
    path.write_bytes(model.SerializeToString())
    return path


def _sha256(model: Any) -> str:
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _red_model(drop: str | None = None) -> Any:
    from onnx import TensorProto, helper

    nodes, constants = _red_nodes()
    kinds = {
        "num_detections": (TensorProto.INT32, ["B", 1]),
        "detection_boxes": (TensorProto.FLOAT, ["B", ROWS, 4]),
        "detection_scores": (TensorProto.FLOAT, ["B", ROWS]),
        "detection_classes": (TensorProto.INT32, ["B", ROWS]),
        "nms_exact": (TensorProto.INT32, ["B", 1]),
        "candidate_boxes": (TensorProto.FLOAT, ["B", 1, 4]),
        "candidate_scores": (TensorProto.FLOAT, ["B", 1]),
        "candidate_classes": (TensorProto.INT32, ["B", 1]),
    }
    graph = helper.make_graph(
        nodes,
        "red",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", "H", "W", 3]),
            helper.make_tensor_value_info("image_sizes", TensorProto.INT32, ["B", 2]),
        ],
        [helper.make_tensor_value_info(name, *kinds[name]) for name in kinds if name != drop],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _red_nodes() -> tuple[list, list]:
    """First and last red row and column by ArgMax, as one box in xyxy."""
    from onnx import helper, numpy_helper

    def constant(name: str, value: np.ndarray) -> None:
        constants.append(numpy_helper.from_array(value, name))

    def node(kind: str, inputs: str, output: str, **attributes: int) -> None:
        nodes.append(helper.make_node(kind, inputs.split(), [output], **attributes))

    nodes: list = []
    constants: list = []
    constant("zero", np.array(0, np.int64))
    constant("threshold", np.array(200, np.float32))
    constant("axis1", np.array([1], np.int64))
    constant("axis2", np.array([2], np.int64))
    constant("one", np.array(1, np.float32))
    constant("nine", np.array(0.9, np.float32))
    constant("pads3", np.array([0, 0, 0, 0, ROWS - 1, 0], np.int64))
    constant("pads2", np.array([0, 0, 0, ROWS - 1], np.int64))
    constant("minus_one", np.array(-1, np.int32))
    node("Gather", "images zero", "red_u8", axis=3)  # [B, H, W]
    node("Cast", "red_u8", "red", to=1)
    node("Greater", "red threshold", "is_red")
    node("Cast", "is_red", "mask", to=1)
    node("ReduceMax", "mask axis2", "rows", keepdims=0)  # [B, H]
    node("ReduceMax", "mask axis1", "columns", keepdims=0)  # [B, W]
    for source, first, last in (("rows", "y1", "y2"), ("columns", "x1", "x2")):
        node("ArgMax", source, f"{first}_i", axis=1, keepdims=1)
        node("ArgMax", source, f"{last}_i", axis=1, keepdims=1, select_last_index=1)
        node("Cast", f"{first}_i", first, to=1)
        node("Cast", f"{last}_i", f"{last}_inside", to=1)
        node("Add", f"{last}_inside one", last)
    node("Concat", "x1 y1 x2 y2", "box", axis=1)  # [B, 4]
    node("ReduceMax", "rows axis1", "found", keepdims=1)  # [B, 1] 1 where any pixel is red
    node("Mul", "box found", "box_or_0")
    node("Unsqueeze", "box_or_0 axis1", "candidate_boxes")
    node("Mul", "found nine", "candidate_scores")
    node("Cast", "found", "num_detections", to=6)
    node("Add", "num_detections minus_one", "candidate_classes")  # 0 where found, else −1
    node("Pad", "candidate_boxes pads3", "detection_boxes")
    node("Pad", "candidate_scores pads2", "detection_scores")
    node("Pad", "candidate_classes pads2 minus_one", "detection_classes")
    node("Mul", "found zero_f", "nothing")
    constant("zero_f", np.array(0, np.float32))
    node("Add", "nothing one", "exact_f")
    node("Cast", "exact_f", "nms_exact", to=6)
    return nodes, constants


def manifest_with(**changes: object) -> Manifest:
    """MANIFEST with fields replaced."""
    return dataclasses.replace(MANIFEST, **changes)  # type: ignore[arg-type]


MANIFEST = manifest_with(graph_sha256=_sha256(_red_model()))
