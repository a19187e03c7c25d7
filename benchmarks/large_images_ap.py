"""Measures what dividing large images before their resize (`Preprocess.divide_large`) does to AP and speed.

    python benchmarks/large_images_ap.py model.onnx --annotations test.json --images images/ [--factors 1 4]

The data set's images and boxes are enlarged by each factor and saved as JPEG of quality 92. The model is then scored
twice: as if trained with division, and as if trained without. Only preprocessing differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import cv2
import onnx

from runtime.coco import load_coco
from runtime.coco.evaluation import score_detector
from runtime.detector import Detector
from runtime.files import atomic_write
from runtime.images import decode
from runtime.manifest import METADATA_KEY, from_json, to_json


def enlarged(annotations: Path, images: Path, factor: float, folder: Path) -> Path:
    """Write the data set into `folder`, images and boxes enlarged by `factor`; returns the annotation file."""
    content = json.loads(annotations.read_text())
    factors = {}
    for image in content["images"]:
        size = round(image["width"] * factor), round(image["height"] * factor)
        factors[image["id"]] = size[0] / image["width"], size[1] / image["height"]
        pixels = decode(images / image["file_name"])
        if factor != 1:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
        image |= {"file_name": f"{image['id']}.jpg", "width": size[0], "height": size[1]}
        cv2.imwrite(str(folder / image["file_name"]), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    for annotation in content["annotations"]:
        x, y = factors[annotation["image_id"]]
        annotation["bbox"] = [value * by for value, by in zip(annotation["bbox"], (x, y, x, y), strict=True)]
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def restamped(model: Path, divide_large: bool, out: Path) -> Path:
    """The model's bytes with another preprocessing in the manifest."""
    proto = onnx.load(model)
    entry = next(entry for entry in proto.metadata_props if entry.key == METADATA_KEY)
    manifest = from_json(entry.value, str(model))
    pre = dataclasses.replace(manifest.preprocess, divide_large=divide_large)
    entry.value = to_json(dataclasses.replace(manifest, preprocess=pre))
    out.write_bytes(proto.SerializeToString())
    return out


def main() -> int:
    """Score the model at every factor, with and without division."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 1.5, 3, 6])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for factor in options.factors:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            dataset = load_coco(enlarged(options.annotations, options.images, factor, folder), folder)
            row: dict[str, object] = {"factor": factor, "images": "×".join(map(str, dataset.size_hw(0)[::-1]))}
            for name, divide in (("whole", False), ("divided", True)):
                model = restamped(options.model, divide, folder / f"{name}.onnx")
                with Detector(model, backend=options.backend) as detector:
                    pre = detector.manifest.preprocess
                    started = time.perf_counter()
                    for index in range(len(dataset)):
                        detector.prepare(dataset.load(index, pre))
                    milliseconds = 1000 * (time.perf_counter() - started) / len(dataset)
                    figures = score_detector(detector, dataset).metrics.values
                row[name] = {
                    "AP": round(100 * figures["AP"], 2),
                    "AP50": round(100 * figures["AP50"], 2),
                    "milliseconds_to_read_and_resize": round(milliseconds, 2),
                }
            rows.append(row)
            print(f"× {factor:g} ({row['images']}): " + "; ".join(f"{k} {row[k]}" for k in ("whole", "divided")))
    if options.json is not None:
        atomic_write(options.json, json.dumps({"model": options.model.name, "results": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
