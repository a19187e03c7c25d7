r"""Measures the errors of each precision on a trained detector, from which export.verify's limits are set.

    python benchmarks/gate_limits.py model.onnx --calibrate train/ --calibrate-annotations train.json \
        --images val/ [--json limits.json]

Converts the float32 file by every scheme and compares each file as `export.verify` does, sixteen times on three images
of `--images`; precisions without ranges are compared on synthetic images too. Prints the largest error of the dense
maps, the largest share of detections without a partner, and the largest error of an 8-bit range.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate, calibration_images, list_images
from export.quantization.convert import convert_model
from export.quantization.scheme import CALIBRATION_IMAGES, Scheme
from export.verification.checks import DETECTIONS, NETWORK, RANGES
from export.verification.comparison import compare_case
from export.verification.conversion import open_conversion
from export.verification.images import make_cases, synthetic_images, unseen
from runtime.errors import run_main
from runtime.files import atomic_write
from runtime.images import decode
from runtime.machine.processor import read_processor

SCHEMES = {
    "fp16": Scheme("fp16"),
    "bf16": Scheme("bf16"),
    "int8 tensorrt": Scheme("int8", "tensorrt"),
    "int8 cpu": Scheme("int8", "cpu"),
    "int8 cpu-vnni": Scheme("int8", "cpu-vnni"),
    "fp8": Scheme("fp8"),
}
IMAGES_COMPARED = 48
KINDS = {"dense": tuple(NETWORK.values()), "unmatched": (DETECTIONS,), "ranges": (RANGES,)}


def largest_errors(source: Path, converted: Path, batches: list[list[np.ndarray]]) -> dict[str, float]:
    """Of all comparisons on these batches of images, by kind."""
    comparison = open_conversion(source, converted)
    checks = [
        check
        for images in batches
        for case in make_cases(comparison.file.manifest, images)
        for check in compare_case(comparison, case)
    ]
    return {
        kind: max((check.worst for check in checks if check.quantity in quantities), default=0.0)
        for kind, quantities in KINDS.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Convert by every scheme, compare, and print the largest errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], prog="benchmarks/gate_limits.py")
    parser.add_argument("model", type=Path, help="float32 file that export/to_onnx.py wrote")
    parser.add_argument("--calibrate", required=True, metavar="DIR", help="images to calibrate on")
    parser.add_argument(
        "--calibrate-annotations", metavar="JSON", help="calibrate only on the images that this file lists"
    )
    parser.add_argument("--images", type=Path, required=True, help="images to compare on, not those of --calibrate")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    images = calibration_images(options.calibrate, options.calibrate_annotations, CALIBRATION_IMAGES, Scheme("int8"))
    others = [
        decode(path) for path in islice(unseen(list_images(options.images, sys.maxsize), images), IMAGES_COMPARED)
    ]
    batches = [others[i : i + 3] for i in range(0, len(others), 3)]
    model, manifest = load_deployed(options.model)
    calibration = calibrate(model, manifest, images())
    found = {}
    print(f"{'':16}" + "".join(f"{kind:>12}" for kind in KINDS))
    with tempfile.TemporaryDirectory() as folder:
        for name, scheme in SCHEMES.items():
            path = Path(folder) / "converted.onnx"
            path.write_bytes(convert_model(model, manifest, scheme, calibration).SerializeToString())
            synthetic = [] if scheme.is_quantized else [synthetic_images()]
            found[name] = largest_errors(options.model, path, [*batches, *synthetic])
            print(f"{name:16}" + "".join(f"{worst:12.4f}" for worst in found[name].values()), flush=True)
    print(f"{len(others)} images beside the {len(images)} of the calibration; {read_processor()}")
    if options.json is not None:
        content = {"model": str(options.model), "processor": str(read_processor()), "errors": found}
        atomic_write(options.json, json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
