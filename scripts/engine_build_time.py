"""How long TensorRT for RTX builds a detector of ResNet-50's size, without a GPU, for each precision and GPU.

    python scripts/engine_build_time.py [--recipe atss_r50_fpn_1x] [--json times.json]

Random weights; pictures of the recipe's size, batches 1-16, an optimization profile for landscape and one for upright
pictures. int8 and fp8 are calibrated on three synthetic pictures. Prints seconds of each build and the engine's size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.calibration import calibrate
from export.convert import Scheme, converted_model
from export.network import load_deployed
from export.pictures import synthetic_pictures
from export.to_onnx import export_model, input_shapes
from export.trt_build import build
from export.trt_library import Library
from export.trt_profiles import make_profiles
from export.trt_settings import Settings, default_capabilities
from runtime.backends.trt_engine import import_tensorrt
from runtime.errors import run_main
from runtime.manifest import Precision
from train.checkpoint import Checkpoint, Classes, load_detector, save_checkpoint
from train.detector import build_detector
from train.recipes import RECIPES

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=RECIPES, default="atss_r50_fpn_1x")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--json", metavar="TIMES.json")
    options = parser.parse_args()
    library = Library("rtx", import_tensorrt("rtx"), None)
    print(f"{library.name} {library.version}, {os.cpu_count()} CPUs, {options.recipe}, 80 classes, random weights")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for precision, path in make_files(options.recipe, Path(folder), options.precisions).items():
            _, manifest = load_deployed(path)
            known = default_capabilities(library, precision)
            for capabilities in (*((capability,) for capability in known), known):
                settings = Settings(make_profiles(manifest), capabilities)
                built = build(library, path, path.read_bytes(), settings)
                results.append((precision, capabilities, round(built.seconds, 1), len(built.data)))
                gpus = " ".join(capabilities)
                print(f"{precision:6}{gpus:32}{built.seconds:6.1f} s{len(built.data) / 1e6:8.0f} MB", flush=True)
    print(f"longest: {max(seconds for _, _, seconds, _ in results)} s of {len(results)} builds")
    if options.json:
        fields = ("precision", "compute_capabilities", "seconds", "bytes")
        rows = [dict(zip(fields, result, strict=True)) for result in results]
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def make_files(recipe: str, folder: Path, precisions: list[Precision]) -> dict[Precision, Path]:
    """The recipe's ONNX file in each precision."""
    config = RECIPES[recipe]()
    config = replace(config, model=replace(config.model, backbone=replace(config.model.backbone, weights="none")))
    classes = Classes(tuple(f"class {number}" for number in range(80)), tuple(range(1, 81)))
    detector = build_detector(config.model, 80, config.preprocess)
    checkpoint = folder / "model.pt"
    save_checkpoint(checkpoint, Checkpoint(config, classes, 1, detector.state_dict(), None, {}, {}, None, -1.0))
    exported = folder / "model.fp32.onnx"
    exported.write_bytes(export_model(load_detector(checkpoint), input_shapes(config.preprocess, 16)))
    model, manifest = load_deployed(exported)
    calibration = None
    if {"int8", "fp8"} & set(precisions):
        pictures = [folder / f"{number}.png" for number in range(3)]
        for path, picture in zip(pictures, synthetic_pictures(), strict=True):
            cv2.imwrite(str(path), picture)
        calibration = calibrate(model, manifest, pictures, progress=False)
    files: dict[Precision, Path] = {}
    for precision in precisions:
        files[precision] = folder / f"model.{precision}.onnx"
        if precision != "fp32":
            converted = converted_model(model, manifest, Scheme(precision), calibration)
            files[precision].write_bytes(converted.SerializeToString())
    return files


if __name__ == "__main__":
    run_main(main)
