"""Measures how long TensorRT for RTX builds a ResNet-50 detector on a CPU, for each precision and GPU.

    python benchmarks/engine_build_time.py [--recipe RECIPE] [--compute-capability 8.6 12.0] [--json times.json]

Random weights; images of the recipe's size, batches 1-16, an optimization profile for landscape and one for upright
images. int8 (TensorRT's layout) and fp8 are calibrated on three synthetic images. Prints the wall time and the
processor time of each build and the engine's size, then the same for one engine for all GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate
from export.quantization.convert import convert_model
from export.quantization.scheme import Scheme
from export.trt.build import build
from export.trt.engine import load_source
from export.trt.library import Library
from export.trt.profiles import make_profiles
from export.trt.settings import RTX_CAPABILITIES, Settings, default_capabilities
from export.verification.images import synthetic_images
from runtime.backends.trt.engine import import_tensorrt
from runtime.errors import run_main
from runtime.manifest import Precision
from train.build import build_detector
from train.checkpoint import Checkpoint, Classes, load_detector, save_checkpoint
from train.config.recipes import RECIPES

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")


def main() -> int:
    """Make the files, build the engines and print the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, metavar="RECIPE", default="atss_r50_fpn_1x")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--compute-capability", nargs="+", choices=RTX_CAPABILITIES, metavar="CC", help="default: all")
    parser.add_argument("--files", metavar="DIR", help="keep the ONNX files in this folder, and reuse the files in it")
    parser.add_argument(
        "--make", action="store_true", help="only make the files, so that a later run measures builds alone"
    )
    parser.add_argument("--json", metavar="TIMES.json")
    options = parser.parse_args()
    if options.make and not options.files:
        parser.error("--make: where to? Give --files DIR")
    library = Library("rtx", import_tensorrt("rtx"), None)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(options.recipe, Path(options.files or folder), options.precisions)
        if options.make:
            return 0
        print(f"{library.name} {library.version}, {os.cpu_count()} CPUs, {options.recipe}, 80 classes, random weights")
        results = [row for precision, path in files.items() for row in time_builds(library, precision, path, options)]
    print(f"longest: {max(row['seconds'] for row in results)} s of {len(results)} builds")
    if options.json:
        found = {"library": f"{library.name} {library.version}", "cpus": os.cpu_count(), "recipe": options.recipe}
        Path(options.json).write_text(json.dumps({**found, "builds": results}, indent=1) + "\n", encoding="utf-8")
    return 0


def time_builds(
    library: Library, precision: Precision, path: Path, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Build for each requested GPU that supports the precision, then one engine for all of them."""
    _, manifest = load_deployed(path)
    wanted = options.compute_capability or RTX_CAPABILITIES
    known = tuple(c for c in default_capabilities(library, precision) if c in wanted)
    for capabilities in dict.fromkeys((*((capability,) for capability in known), known)):
        settings = Settings(make_profiles(manifest), capabilities)
        before = time.process_time()
        built = build(library, path, load_source(path).graph, settings)
        spent = time.process_time() - before
        gpus = " ".join(capabilities)
        size = len(built.data)
        print(f"{precision:6}{gpus:32}{built.seconds:6.1f} s{spent:6.1f} s CPU{size / 1e6:8.0f} MB", flush=True)
        yield {
            "precision": precision,
            "compute_capabilities": capabilities,
            "seconds": round(built.seconds, 2),
            "cpu_seconds": round(spent, 2),
            "bytes": size,
        }


def make_files(recipe: str, folder: Path, precisions: list[Precision]) -> dict[Precision, Path]:
    """The recipe's ONNX file in each precision. Files that the folder has already are reused."""
    files: dict[Precision, Path] = {precision: folder / f"{recipe}.{precision}.onnx" for precision in precisions}
    if all(path.exists() for path in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    config = RECIPES[recipe]()
    config = replace(config, model=replace(config.model, backbone=replace(config.model.backbone, weights="none")))
    classes = Classes(tuple(f"class {number}" for number in range(80)), tuple(range(1, 81)))
    detector = build_detector(config.model, 80, config.preprocess)
    checkpoint = folder / f"{recipe}.pt"
    save_checkpoint(checkpoint, Checkpoint(config, classes, 1, detector.state_dict(), None, {}, {}, None, -1.0))
    exported = folder / f"{recipe}.fp32.onnx"
    exported.write_bytes(checkpoint_to_graph(load_detector(checkpoint), input_shapes(config.preprocess, 16)))
    model, manifest = load_deployed(exported)
    calibration = None
    if {"int8", "fp8"} & set(precisions):
        images = [folder / f"{number}.png" for number in range(3)]
        for path, image in zip(images, synthetic_images(), strict=True):
            cv2.imwrite(str(path), image)
        calibration = calibrate(model, manifest, images, progress=False)
    for precision, path in files.items():
        if precision != "fp32":
            path.write_bytes(convert_model(model, manifest, Scheme(precision), calibration).SerializeToString())
    return files


if __name__ == "__main__":
    run_main(main)
