"""Measures what DeepStream's way of feeding and reading a detector does to its AP, step by step, without DeepStream.

    python benchmarks/deepstream_ap.py model.onnx [model.fp16.onnx …] --annotations test.json --images images/ \
        --canvas 256 320 --canvas 320 320 [--mosaic 2] [--json deepstream.json]

    python benchmarks/deepstream_ap.py best.pt --threshold 0.001 …      # a graph whose NMS has more candidates
    python benchmarks/deepstream_ap.py model.onnx --ranked 100 …        # and one whose NMS ranks fewer of them

Each file's variant is first compared with the file itself, bit by bit. Then the first file is scored for each canvas,
each time with one thing changed:

- toolkit: this runtime, with the canvas that it chooses for each image
- resize: nvinfer's, which fills the canvas; padded with the recipe's colour, clipped to the image, NMS rerun on the
  host where the graph says that its own isn't exact
- black: the padding is black
- canvas: boxes are clipped to the canvas, not to the image
- parser: the variant's outputs through the parser, which reruns no NMS
- uncropped: nvinfer drops a box that ends below the frame, as it does by default
- limited: the same, where the graph limits boxes to the frame (DeepStream 7.1)
- cropped: nvinfer crops boxes to the frame instead, as the configuration says (DeepStream 8.0 and 9)

nvinfer's resize is emulated by OpenCV's bilinear one in nvinfer's geometry. With --mosaic N, N × N images are joined
into one, for crowded images; choose canvases that are N times as large.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.deepstream.contract import INPUT, OUTPUTS, PAD_VALUE, box_limits, resized_frame
from export.deepstream.variant import to_variant
from export.deepstream.verify import NUMBERS, nvinfer_input, verify_variant
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model import nms
from export.onnx_model.file import INPUT_NAMES
from export.onnx_model.forms import for_processor
from export.onnx_model.network import load_deployed, parse_deployed
from export.onnx_model.session import open_session
from export.verification.images import load_comparison_images
from runtime.backends.onnx_file import OUTPUT_NAMES
from runtime.coco import CocoDataset, load_coco, load_ground_truth, score
from runtime.coco.evaluation import score_detector
from runtime.coco.results import Results, results_of_image
from runtime.detections import Detections, RawOutputs, postprocess, select
from runtime.detector import Detector
from runtime.errors import run_main
from runtime.files import atomic_write
from runtime.images import decode
from runtime.machine.conditions import describe_run
from train.checkpoint import load_detector

STEPS = ("resize", "black", "canvas", "parser", "uncropped", "limited", "cropped")


class Placed(NamedTuple):
    """A frame as nvinfer lays it on a canvas."""

    canvas: np.ndarray  # uint8 [H, W, 3]
    resized_hw: tuple[int, int]
    ratio_xy: tuple[float, float]  # canvas pixels per pixel of the frame


def place(image: np.ndarray, canvas_hw: tuple[int, int], colour: tuple[int, int, int]) -> Placed:
    """A frame in the corner of a canvas, as nvinfer lays it."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    resized_hw = resized_frame((height, width), canvas_hw)
    canvas = np.empty((*canvas_hw, 3), np.uint8)
    canvas[:] = colour
    canvas[: resized_hw[0], : resized_hw[1]] = cv2.resize(
        image[:height, :width], (resized_hw[1], resized_hw[0]), interpolation=cv2.INTER_LINEAR
    )
    return Placed(canvas, resized_hw, (resized_hw[1] / width, resized_hw[0] / height))


def parse(outputs: list[np.ndarray], canvas_hw: tuple[int, int]) -> Detections:
    """What the parser for EfficientDet makes of the variant's outputs for one frame, in pixels of the canvas."""
    count = int(outputs[0][0, 0])
    y1, x1, y2, x2 = outputs[1][0, :count].T
    most_x, most_y = canvas_hw[1] - 1, canvas_hw[0] - 1
    left, top = np.clip(x1, 0, most_x), np.clip(y1, 0, most_y)
    right, bottom = left + np.clip(x2 - x1, 0, most_x), top + np.clip(y2 - y1, 0, most_y)
    boxes = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
    return Detections(boxes, outputs[2][0, :count], outputs[3][0, :count].astype(np.int32))


def to_frame(detections: Detections, placed: Placed) -> Detections:
    """Detections in pixels of the canvas, in pixels of the frame, rounded as nvinfer rounds corners and sides."""
    ratio_xy = np.array(placed.ratio_xy)
    corners = (detections.boxes[:, :2] / ratio_xy).astype(np.float32)
    sides = ((detections.boxes[:, 2:] - detections.boxes[:, :2]) / ratio_xy).astype(np.float32)
    return Detections(np.concatenate([corners, corners + sides], axis=1), detections.scores, detections.classes)


def without_low_ends(detections: Detections, height: int) -> Detections:
    """The detections whose boxes don't end below the frame."""
    return select(detections, detections.boxes[:, 3] <= height)


def cropped(detections: Detections, frame_hw: tuple[int, int]) -> Detections:
    """Detections whose boxes end at the right and lower edges of the frame."""
    most = np.array([frame_hw[1], frame_hw[0]] * 2, np.float32)
    return Detections(np.minimum(detections.boxes, most), detections.scores, detections.classes)


def measure(path: Path, dataset: CocoDataset, canvas_hw: tuple[int, int]) -> dict[str, object]:
    """AP of the four steps with one canvas, and how often NMS wasn't exact."""
    model, manifest = load_deployed(path)
    variant = open_session(to_variant(model, manifest, canvas_hw))
    original, pad = open_session(for_processor(model, manifest.thresholds, "gpu")), manifest.preprocess.pad_value
    found: dict[str, list[Results]] = {step: [] for step in STEPS}
    inexact, changed, dropped = 0, 0, 0
    for index in range(len(dataset)):
        image = decode(dataset.path(index))
        padded, black = (place(image, canvas_hw, colour) for colour in (pad, PAD_VALUE))
        rows: dict[str, Detections] = {}
        for step, placed, size in (
            ("resize", padded, padded.resized_hw),
            ("black", black, black.resized_hw),
            ("canvas", black, canvas_hw),
        ):
            feed = dict(zip(INPUT_NAMES, (placed.canvas[None], np.array([size], np.int32)), strict=True))
            raw = RawOutputs(*original.run(OUTPUT_NAMES, feed))
            rows[step] = postprocess(raw, manifest.thresholds)[0]
        inexact += int(raw.nms_exact[0, 0] == 0)
        outputs = variant.run(list(OUTPUTS), {INPUT: nvinfer_input(black.canvas[None])})
        rows["parser"] = parse(outputs, canvas_hw)
        changed += int(len(rows["parser"]) != len(rows["canvas"]))
        in_frame = {step: to_frame(detections, black) for step, detections in rows.items()}
        in_frame["uncropped"] = without_low_ends(in_frame["parser"], image.shape[0])
        limits_yxyx = np.tile(np.array(box_limits(image.shape[:2], canvas_hw), np.float32), 2)
        limited = parse([outputs[0], np.minimum(outputs[1], limits_yxyx), *outputs[2:]], canvas_hw)
        in_frame["limited"] = without_low_ends(to_frame(limited, black), image.shape[0])
        in_frame["cropped"] = cropped(in_frame["parser"], image.shape[:2])
        dropped += len(in_frame["parser"]) - len(in_frame["uncropped"])
        for step, detections in in_frame.items():
            found[step].append(results_of_image(dataset.image_ids[index], detections, manifest.category_ids))
    truth = load_ground_truth(dataset.json_path)
    aps = {step: score(truth, joined(parts)).values["AP"] for step, parts in found.items()}
    return {
        "canvas": f"{canvas_hw[0]}×{canvas_hw[1]}",
        "AP": {step: round(100 * ap, 2) for step, ap in aps.items()},
        "images": len(dataset),
        "images_with_inexact_nms": inexact,
        "images_with_another_count": changed,
        "boxes_that_end_below_the_frame": dropped,
    }


def joined(parts: list[Results]) -> Results:
    """Results of several images as one."""
    fields = zip(*((r.image_ids, r.category_ids, r.boxes, r.scores) for r in parts), strict=True)
    return Results(*(np.concatenate(field) for field in fields))


def equality(paths: list[Path], folder: Path, canvas_hw: tuple[int, int]) -> Iterator[dict[str, object]]:
    """For each file, how many numbers of its variant were compared with its own, and how many differ."""
    images = load_comparison_images(str(folder))
    for path in paths:
        model, manifest = load_deployed(path)
        variant = to_variant(model, manifest, canvas_hw)
        _, stated = parse_deployed(variant.SerializeToString(), path)
        numbers = [check for check in verify_variant(model, variant, stated, images) if check.quantity == NUMBERS]
        compared, unlike = sum(check.compared for check in numbers), int(sum(check.worst for check in numbers))
        yield {"file": path.name, "precision": manifest.precision, "compared": compared, "unlike": unlike}


def mosaic(annotations: Path, images: Path, side: int, folder: Path) -> Path:
    """Write the data set into `folder` with `side` × `side` images joined into one; returns the annotation file."""
    content = json.loads(annotations.read_text())
    height, width = (max(image[name] for image in content["images"]) for name in ("height", "width"))
    joined_images, places = [], {}
    groups = [content["images"][i : i + side * side] for i in range(0, len(content["images"]), side * side)]
    for number, group in enumerate(groups, start=1):
        pixels = np.zeros((side * height, side * width, 3), np.uint8)
        for place_number, image in enumerate(group):
            y, x = place_number // side * height, place_number % side * width
            part = decode(images / image["file_name"])
            pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
            places[image["id"]] = number, x, y
        name = f"{number}.png"
        cv2.imwrite(str(folder / name), pixels[..., ::-1])
        joined_images.append({"id": number, "file_name": name, "height": side * height, "width": side * width})
    for annotation in content["annotations"]:
        number, x, y = places[annotation["image_id"]]
        box = annotation["bbox"]
        annotation |= {"image_id": number, "bbox": [box[0] + x, box[1] + y, *box[2:]], "segmentation": []}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content | {"images": joined_images}))
    return path


def exported(checkpoint: Path, threshold: float, folder: Path) -> Path:
    """A checkpoint's graph with another score threshold, as a file in `folder`."""
    loaded = load_detector(checkpoint)
    thresholds = dataclasses.replace(loaded.config.thresholds, score=threshold)
    loaded = loaded._replace(config=dataclasses.replace(loaded.config, thresholds=thresholds))
    path = folder / "exported.onnx"
    path.write_bytes(checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 1)))
    return path


def main() -> int:
    """Compare the files, and score the first of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--canvas", type=int, nargs=2, action="append", required=True, metavar=("H", "W"))
    parser.add_argument("--mosaic", type=int, default=1, metavar="N", help="join N × N images into one (%(default)s)")
    parser.add_argument("--threshold", type=float, help="export a checkpoint (.pt) with this score threshold")
    parser.add_argument("--ranked", type=int, default=nms.MAX_RANKED, help="candidates that NMS ranks (%(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    nms.MAX_RANKED = options.ranked
    canvases = [(height, width) for height, width in options.canvas]
    with tempfile.TemporaryDirectory() as temporary:
        annotations, images, models = options.annotations, options.images, options.models
        if options.threshold is not None:
            models = [exported(models[0], options.threshold, Path(temporary))]
        if options.mosaic > 1:
            images = Path(temporary)
            annotations = mosaic(options.annotations, options.images, options.mosaic, images)
        dataset = load_coco(annotations, images)
        same = []
        for row in equality(models, options.images, canvases[0]):
            same.append(row)
            print(f"{row['file']} ({row['precision']}): {row['compared']} numbers compared, {row['unlike']} unlike")
        with Detector(models[0]) as detector:
            own = round(100 * score_detector(detector, dataset).metrics.values["AP"], 2)
        print(f"toolkit: AP {own}, {len(dataset)} images")
        rows = []
        for canvas_hw in canvases:
            rows.append(measure(models[0], dataset, canvas_hw))
            print(rows[-1])
    if options.json is not None:
        content = {
            "conditions": dataclasses.asdict(describe_run(shlex.join(["python", *sys.argv]))),
            "mosaic": options.mosaic,
            "equality": same,
            "toolkit": own,
            "rows": rows,
        }
        atomic_write(options.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
