"""Measures what tiles do to AP and time on mosaics of small images, beside SAHI's slicing of the same model.

    python -m benchmarks.tiling_benchmark model.onnx --annotations val.json --images val/ --tiles 192

The data set's images are laid into mosaics of 2000×1500 px, enlarged by random factors, so that their objects are
small for the network. Every way to detect sees the same mosaics, which take turns mosaic by mosaic; the times are
medians over them. SAHI (pip install sahi) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from runtime.bounds import Positive, Seed, argument
from runtime.coco.ground_truth import load_ground_truth
from runtime.coco.metrics import score
from runtime.coco.results import ResultsBuilder, results_of_image
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.files import atomic_write
from runtime.images import decode
from runtime.tiling import TiledDetector, Tiles
from runtime.tiling.settings import Overlap, TileSide

SIZE_HW = (1500, 2000)
FACTORS = (0.5, 0.7, 1.0, 2.0)  # by which the images of a mosaic are enlarged
FIGURES = ("AP", "AP50", "APs", "APm", "APl")
Way = Callable[[np.ndarray], Detections]


def write_mosaics(annotations: Path, images: Path, count: int, seed: int, folder: Path) -> Path:
    """Write `count` mosaics of the data set's images, in random order, into `folder`; returns the annotation file."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    rng = np.random.default_rng(seed)
    order: list[dict[str, Any]] = []
    made: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    height, width = SIZE_HW
    for number in range(1, count + 1):
        mosaic = np.full((height, width, 3), 127, np.uint8)
        x = y = row_height = 0
        while True:
            order = order or [content["images"][i] for i in rng.permutation(len(content["images"]))]
            image, factor = order[-1], rng.choice(FACTORS)
            w, h = round(image["width"] * factor), round(image["height"] * factor)
            if x + w > width:
                x, y, row_height = 0, y + row_height, 0
            if x + w > width or y + h > height:
                break
            order.pop()
            pixels = decode(images / image["file_name"])
            kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
            mosaic[y : y + h, x : x + w] = cv2.resize(pixels, (w, h), interpolation=kind)
            by_x, by_y = w / image["width"], h / image["height"]
            for annotation in objects.get(image["id"], ()):
                x1, y1, box_w, box_h = annotation["bbox"]
                box = [x1 * by_x + x, y1 * by_y + y, box_w * by_x, box_h * by_y]
                place = {"id": len(made["annotations"]) + 1, "image_id": number, "bbox": box, "area": box[2] * box[3]}
                made["annotations"].append({**annotation, **place, "segmentation": []})
            x, row_height = x + w, max(row_height, h)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.cvtColor(mosaic, cv2.COLOR_RGB2BGR))
        made["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    path = folder / "annotations.json"
    path.write_text(json.dumps({**made, "categories": content["categories"]}), encoding="utf-8")
    return path


def sahi_ways(detector: Detector, side: int, overlap: float, batch: int) -> dict[str, Way]:
    """SAHI's own slicing of the same detector: merged as it chooses, and by NMS with the model's threshold."""
    try:
        from sahi.models.base import DetectionModel
        from sahi.predict import get_sliced_prediction
        from sahi.prediction import ObjectPrediction
    except ImportError as error:
        print(f"without SAHI, which cannot be imported: {error}", file=sys.stderr)
        return {}

    class Wrapped(DetectionModel):  # type: ignore[misc]
        """The detector as SAHI calls one."""

        def load_model(self) -> None:
            """See SAHI."""
            self.model = detector
            self.category_mapping = {str(i): name for i, name in enumerate(detector.classes)}

        def check_dependencies(self, *_: Any, **__: Any) -> None:
            """Nothing to check."""

        def perform_inference(self, image: np.ndarray) -> None:
            """Detect on one slice."""
            self._original_predictions = detector.detect([image])

        def perform_batch_inference(self, images: list[np.ndarray]) -> None:
            """Detect on several slices."""
            self._original_predictions = detector.detect([np.ascontiguousarray(image) for image in images])

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            found = self._original_predictions
            shifts, shapes = shift_amount_list or [[0, 0]], full_shape_list or [None]
            shifts = shifts if isinstance(shifts[0], list) else [shifts]
            shapes = shapes if shapes[0] is None or isinstance(shapes[0], list) else [shapes]
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(box.tolist(), int(kind), str(kind), None, float(value), shift, shape)
                    for box, value, kind in zip(one.boxes, one.scores, one.classes, strict=True)
                    if box[2] > box[0] and box[3] > box[1]
                ]
                for one, shift, shape in zip(found, shifts, shapes * len(found), strict=False)
            ]

    model = Wrapped(confidence_threshold=0.0, device="cpu")

    def way(**options: Any) -> Way:
        def detect(image: np.ndarray) -> Detections:
            found = get_sliced_prediction(
                *(image, model, side, side, overlap, overlap), verbose=0, batch_size=batch, **options
            ).object_prediction_list
            found.sort(key=lambda one: -one.score.value)
            return Detections(
                np.array([one.bbox.to_xyxy() for one in found], np.float32).reshape(-1, 4),
                np.array([one.score.value for one in found], np.float32),
                np.array([one.category.id for one in found], np.int32),
            )

        return detect

    nms = {"postprocess_type": "NMS", "postprocess_match_metric": "IOU", "force_postprocess_type": True}
    threshold = detector.manifest.thresholds.nms_iou
    return {
        "SAHI": way(),  # with low scores it chooses NMS itself, at an IoU of 0.5
        "SAHI, NMS": way(**nms, postprocess_match_threshold=threshold),
    }


def measure(ways: dict[str, Way], detector: Detector, annotations: Path) -> dict[str, dict[str, float]]:
    """AP and time of each way on the mosaics, which take turns."""
    truth = load_ground_truth(annotations)
    folder = annotations.parent
    images = json.loads(annotations.read_text(encoding="utf-8"))["images"]
    found = {name: ResultsBuilder() for name in ways}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn, image in enumerate(images):
        pixels = decode(folder / image["file_name"])
        for name in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
            started, processor = time.perf_counter(), time.process_time()
            detections = ways[name](pixels)
            seconds[name].append((time.perf_counter() - started, time.process_time() - processor))
            found[name].add(results_of_image(image["id"], detections, detector.manifest.category_ids, None))
    ids = [image["id"] for image in images]
    rows = {}
    for name in ways:
        values = score(truth, found[name].results(np.array(ids)), ids).values
        wall, processor = (statistics.median(one) for one in zip(*seconds[name], strict=True))
        rows[name] = {key: round(100 * values[key], 1) for key in FIGURES}
        rows[name] |= {"seconds": round(wall, 2), "processor_seconds": round(processor, 2)}
    return rows


def main() -> int:
    """Print a row for each way to detect."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="tiling_benchmark"
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--tiles", type=argument(TileSide), default=192)
    parser.add_argument("--overlap", type=argument(Overlap), default=0.2)
    parser.add_argument("--count", type=argument(Positive), default=10, help="mosaics (%(default)s)")
    parser.add_argument("--seed", type=argument(Seed), default=0)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with Detector(options.model, backend=options.backend) as detector, tempfile.TemporaryDirectory() as temporary:
        mosaics = write_mosaics(options.annotations, options.images, options.count, options.seed, Path(temporary))
        ways: dict[str, Way] = {"plain": lambda image: detector.detect([image])[0]}
        for merge in ("ios", "nms"):
            for whole in (True, False):
                tiles = Tiles(options.tiles, options.overlap, merge, whole)  # type: ignore[arg-type]
                ways[f"tiles, {merge}{'' if whole else ', without the whole'}"] = TiledDetector(detector, tiles)
        ways |= sahi_ways(detector, options.tiles, options.overlap, batch=8)
        load = os.getloadavg()[0]
        rows = measure(ways, detector, mosaics)
        conditions = {"backend": detector.backend.description, "mosaics": options.count, "load_before": round(load, 2)}
    for name, row in rows.items():
        print(f"{name:32}", *(f"{key} {value:g}" for key, value in row.items()))
    print(conditions)
    if options.json is not None:
        atomic_write(options.json, json.dumps({"conditions": conditions, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
