"""Measures what DeepStream's way of feeding and reading a detector does to its AP, step by step, without DeepStream.

    python benchmarks/deepstream_ap.py model.onnx [model.fp16.onnx …] --annotations test.json --images images/ \
        --canvas 256 320 --canvas 320 320 [--mosaic 2] [--json deepstream.json]

Each file's variant is first compared with the file itself, bit by bit. Then the first file is scored five times for
each canvas; each row changes one thing:

- toolkit: this runtime, with the canvas that it chooses for each image
- resize: nvinfer's, which fills the canvas; padded with the recipe's colour, clipped to the image, NMS rerun on the
  host where the graph says that its own isn't exact
- black: the padding is black
- canvas: boxes are clipped to the canvas, not to the image
- deepstream: the variant's outputs through the parser, which reruns no NMS

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

from export.deepstream.contract import INPUT, OUTPUTS, PAD_VALUE
from export.deepstream.variant import to_variant
from export.deepstream.verify import NUMBERS, nvinfer_input, verify_variant
from export.onnx_model.network import load_deployed, parse_deployed
from export.onnx_model.session import open_session
from export.verification.images import load_comparison_images
from runtime.backends.ort.backend import OrtBackend
from runtime.coco import CocoDataset, load_coco, load_ground_truth, score
from runtime.coco.evaluation import score_detector
from runtime.coco.results import Results, results_of_image
from runtime.detections import Detections, postprocess
from runtime.detector import Detector
from runtime.errors import run_main
from runtime.files import atomic_write
from runtime.images import decode
from runtime.machine.conditions import describe_run

STEPS = ("resize", "black", "canvas", "deepstream")


class Placed(NamedTuple):
    """A frame as nvinfer lays it on a canvas."""

    canvas: np.ndarray  # uint8 [H, W, 3]
    resized_hw: tuple[int, int]
    ratio_xy: tuple[float, float]  # canvas pixels per pixel of the frame


def place(image: np.ndarray, canvas_hw: tuple[int, int], colour: tuple[int, int, int]) -> Placed:
    """A frame in the corner of a canvas, by the arithmetic of nvinfer's `get_converted_buffer`."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    if canvas_hw[1] * height / width <= canvas_hw[0]:
        resized_hw = int(canvas_hw[1] * height / width), canvas_hw[1]
    else:
        resized_hw = canvas_hw[0], int(canvas_hw[0] * width / height)
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


def measure(path: Path, dataset: CocoDataset, canvas_hw: tuple[int, int]) -> dict[str, object]:
    """AP of the four steps with one canvas, and how often NMS wasn't exact."""
    model, manifest = load_deployed(path)
    variant = open_session(to_variant(model, manifest, canvas_hw))
    backend, pad = OrtBackend(path), manifest.preprocess.pad_value
    found: dict[str, list[Results]] = {step: [] for step in STEPS}
    inexact, changed = 0, 0
    for index in range(len(dataset)):
        image = decode(dataset.path(index))
        padded, black = (place(image, canvas_hw, colour) for colour in (pad, PAD_VALUE))
        rows: dict[str, Detections] = {}
        for step, placed, size in (
            ("resize", padded, padded.resized_hw),
            ("black", black, black.resized_hw),
            ("canvas", black, canvas_hw),
        ):
            raw = backend.infer(placed.canvas[None], np.array([size], np.int32))
            rows[step] = postprocess(raw, manifest.thresholds)[0]
        inexact += int(raw.nms_exact[0, 0] == 0)
        rows["deepstream"] = parse(variant.run(list(OUTPUTS), {INPUT: nvinfer_input(black.canvas[None])}), canvas_hw)
        changed += int(len(rows["deepstream"]) != len(rows["canvas"]))
        for step, detections in rows.items():
            boxes = detections.boxes / np.tile(np.array(black.ratio_xy, np.float32), 2)
            in_frame = Detections(boxes, detections.scores, detections.classes)
            found[step].append(results_of_image(dataset.image_ids[index], in_frame, manifest.category_ids))
    truth = load_ground_truth(dataset.json_path)
    aps = {step: score(truth, joined(parts)).values["AP"] for step, parts in found.items()}
    return {
        "canvas": f"{canvas_hw[0]}×{canvas_hw[1]}",
        "AP": {step: round(100 * ap, 2) for step, ap in aps.items()},
        "images": len(dataset),
        "images_with_inexact_nms": inexact,
        "of_these_with_another_count": changed,
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


def main() -> int:
    """Compare the files, and score the first of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--canvas", type=int, nargs=2, action="append", required=True, metavar=("H", "W"))
    parser.add_argument("--mosaic", type=int, default=1, metavar="N", help="join N × N images into one (%(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    canvases = [(height, width) for height, width in options.canvas]
    with tempfile.TemporaryDirectory() as temporary:
        annotations, images = options.annotations, options.images
        if options.mosaic > 1:
            images = Path(temporary)
            annotations = mosaic(options.annotations, options.images, options.mosaic, images)
        dataset = load_coco(annotations, images)
        same = []
        for row in equality(options.models, options.images, canvases[0]):
            same.append(row)
            print(f"{row['file']} ({row['precision']}): {row['compared']} numbers compared, {row['unlike']} unlike")
        with Detector(options.models[0]) as detector:
            own = round(100 * score_detector(detector, dataset).metrics.values["AP"], 2)
        print(f"toolkit: AP {own}, {len(dataset)} images")
        rows = []
        for canvas_hw in canvases:
            rows.append(measure(options.models[0], dataset, canvas_hw))
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
