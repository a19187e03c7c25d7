"""Compares the methods of choosing 8-bit ranges by AP, cross-validated on the training images.

    python benchmarks/calibration_methods.py model.onnx --annotations train.json --images train/ [--limit 1000]

The images are split into parts. For each part, the model is calibrated on the other parts, converted by every method
for every layout, and run on the part with exact sums (`onnx_model.emulation`). The results of all parts are scored
together. No test split is used. The network was
trained on these images, so its AP is higher than on new images; only the differences count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.calibration import METHODS
from export.onnx_model.emulation import emulate
from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate, evenly_spaced
from export.quantization.convert import convert_model
from export.quantization.scheme import Scheme
from runtime.coco import load_coco_with_truth, score
from runtime.coco.results import join_results
from runtime.coco.run import RunSettings, detect_with_all, plan_batches
from runtime.detector import Detector
from runtime.errors import run_main
from runtime.files import atomic_write, sha256_file

BATCH = 8
LAYOUTS = (("int8", "cpu"), ("int8", "cpu-vnni"), ("int8", "tensorrt"), ("fp8", "tensorrt"))


def main(arguments: list[str] | None = None) -> int:
    """Cross-validate every method and layout, and print the AP of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="float32 file that export/to_onnx.py wrote")
    parser.add_argument(
        "--annotations", type=Path, required=True, help="COCO json of the images that the model was trained on"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of these images")
    parser.add_argument("--limit", type=int, help="only the first N images")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--calibration-images", type=int, default=500, help="at most N images (%(default)s)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    model, manifest = load_deployed(options.model)
    dataset, truth = load_coco_with_truth(options.annotations, options.images)
    schemes = [Scheme(precision, target, method) for precision, target in LAYOUTS for method in METHODS]  # type: ignore[arg-type]
    found = []
    for part in range(options.parts):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            detectors = [stack.enter_context(Detector(options.model, backend="cpu"))]
            batches = plan_batches(detectors, dataset, BATCH, options.limit)
            others = [index for i, batch in enumerate(batches) if i % options.parts != part for index in batch]
            images = evenly_spaced([dataset.path(index) for index in sorted(others)], options.calibration_images)
            calibration = calibrate(model, manifest, images, sys.stderr.isatty())
            for number, scheme in enumerate(schemes):
                path = Path(folder) / f"{number}.onnx"
                converted = emulate(convert_model(model, manifest, scheme, calibration))
                path.write_bytes(converted.SerializeToString())
                detectors.append(stack.enter_context(Detector(path, backend="cpu", allow_saturation=True)))
            part_of_data = (part, options.parts)
            settings = RunSettings(BATCH, options.limit, part=part_of_data, progress=sys.stderr.isatty())
            found.append(detect_with_all(detectors, dataset, settings))
        print(f"part {part + 1} of {options.parts}: calibrated on {calibration.images}", flush=True)
    ids = [image_id for runs in found for image_id in runs[0].image_ids]
    names = ["fp32", *(f"{scheme.precision} {scheme.target} {scheme.method}" for scheme in schemes)]
    ap = {
        name: score(truth, join_results(runs[number].results for runs in found), ids).values["AP"]
        for number, name in enumerate(names)
    }
    print(f"AP of 100 on {len(ids)} images\n{'':24}{'AP':>8}{'difference':>12}")
    for name in names:
        print(f"{name:24}{100 * ap[name]:8.2f}{100 * (ap[name] - ap['fp32']):+12.2f}")
    if options.json is not None:
        conditions = {
            "model": str(options.model),
            "sha256": sha256_file(options.model),
            "annotations": str(options.annotations),
            "images": len(ids),
            "parts": options.parts,
        }
        atomic_write(options.json, json.dumps({"conditions": conditions, "ap": ap}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
