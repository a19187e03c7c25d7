"""Compares images/s of `atss_r50` in the runtime with torchvision's `fcos_resnet50_fpn` and `retinanet_resnet50_fpn`.

    python benchmarks/throughput_benchmark.py [--canvas 480 640] [--batches 1 8] [--json throughput.json]

Ours: the exported file in float32 (for every canvas, and for one canvas, `--canvas H W`) and in int8 (`export.quantize
--target cpu`, for every canvas), in ONNX Runtime and OpenVINO, from uint8 canvases to detections. torchvision's: the
eager model, and its ONNX export, which is fixed to these sizes and this batch, in ONNX Runtime with the same session
options, from float images to detections, with torchvision's own thresholds and NMS. All use the same images, the same
number of threads and of classes. Weights are random, all scores COCO-like (`random_detectors`).

`--group-norms` also measures our float32 files with native and with split group norms (`export.onnx_model.group_norm`).

The sides alternate (A B C, C B A, …) in one process. Ratios (torchvision's time over ours) are medians over rounds. For
a shared machine, the ratios of the minimum times and of the processor times are printed too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_detectors import our_model, photographs, torchvision_model
from benchmarks.sides import Side, alternate, eager_side, our_side, write_form
from export.onnx_model.group_norm import join_group_norms, split_group_norms
from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate
from export.quantization.convert import convert_file
from export.quantization.scheme import Scheme
from runtime.backends import open_backend
from runtime.files import atomic_write

RECIPE = "atss_r50_fpn_1x"
FORMS = {"native norms": join_group_norms, "split norms": split_group_norms}
FLOATS = ("fp32", "fp32 fixed")
OURS = tuple(
    (file, name)
    for file in (*FLOATS, *(f"{file}, {form}" for file in FLOATS for form in FORMS), "int8")
    for name in ("cpu", "openvino")
)


def exported_side(model: nn.Module, photos: list[Tensor], threads: int) -> Side:
    """torchvision's model as ONNX, fixed to these sizes and this batch by its export."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is traced, and for one size
        torch.onnx.export(model, (photos,), buffer, dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {given.name: image.numpy() for given, image in zip(session.get_inputs(), photos, strict=True)}
    return lambda: sum(output.shape[0] for output in session.run(None, feed) if output.ndim == 2)  # the boxes


def our_files(folder: Path, images: np.ndarray, photographs_in: Path | None) -> dict[str, Path]:
    """Our float32 files, and the int8 file, calibrated on a few of the same photographs."""
    path = our_model(folder, RECIPE, images[:4])
    quantized = path.with_suffix(".int8.onnx")
    files = {"fp32": path, "fp32 fixed": our_model(folder, RECIPE, images[:4], fixed=True)}
    if photographs_in is None:
        return files
    if not quantized.exists():
        model, manifest = load_deployed(path)
        shown = sorted(p for p in photographs_in.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:4]
        convert_file(path, quantized, Scheme("int8", "cpu"), calibrate(model, manifest, shown))
    return files | {"int8": quantized}


def both_forms(files: dict[str, Path]) -> dict[str, Path]:
    """The float32 files with their group norms in either form, written beside them."""
    made = {}
    for file in FLOATS:
        model, manifest = load_deployed(files[file])
        for form, change in FORMS.items():
            path = files[file].with_suffix(f".{form.split()[0]}.onnx")
            made[f"{file}, {form}"] = write_form(path, change(model), manifest)
    return made


def measure(sides: dict[str, Side], rounds: int, batch: int) -> dict[str, object]:
    """Images/s, processor time and detections of every side over alternating rounds."""
    times = alternate(sides, rounds)
    wall, processor = times.wall, times.processor
    return {
        "batch": batch,
        "images_per_second": {name: batch / statistics.median(values) for name, values in wall.items()},
        "best_images_per_second": {name: batch / min(values) for name, values in wall.items()},
        "processor_seconds_per_image": {name: statistics.median(values) / batch for name, values in processor.items()},
        "detections_per_image": {name: count / batch for name, count in times.found.items()},
        "ratios": ratios(wall, lambda a, b: statistics.median(y / x for x, y in zip(a, b, strict=True))),
        "ratios_of_least_times": ratios(wall, lambda a, b: min(b) / min(a)),
        "ratios_of_processor_time": ratios(processor, lambda a, b: statistics.median(b) / statistics.median(a)),
    }


def ratios(
    seconds: dict[str, list[float]], ratio: Callable[[list[float], list[float]], float]
) -> dict[str, dict[str, float]]:
    """How many times as fast each of our files is as each of torchvision's models."""
    ours = [name for name in seconds if name.startswith(RECIPE)]
    return {
        name: {other: ratio(seconds[name], seconds[other]) for other in seconds if other not in ours} for name in ours
    }


def main() -> int:
    """Make the models, measure every batch size and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--canvas", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=Path, help="folder of photographs; int8 needs them for calibration")
    parser.add_argument("--keep", type=Path, help="keep the models in this folder between runs")
    parser.add_argument("--prepare", action="store_true", help="only make the models in --keep")
    parser.add_argument("--group-norms", action="store_true", help="also measure both forms of group norms")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    height, width = options.canvas
    images = photographs(options.images, max(options.batches), height, width)
    with tempfile.TemporaryDirectory() as temporary:
        files = our_files(options.keep or Path(temporary), images, options.images)
        if options.group_norms:
            files |= both_forms(files)
        if options.prepare:
            return 0
        backends = {
            f"{RECIPE} {file}, {name}": open_backend(files[file], backend=name, threads=options.threads)
            for file, name in OURS
            if file in files
        }
    theirs = {kind: torchvision_model(kind, images[:4]) for kind in ("fcos", "retinanet")}
    conditions = {
        "images": f"{width}×{height}",
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    for name, backend in backends.items():
        print(f"{name}: {backend.description}")
    results = []
    for batch in options.batches:
        photos = [torch.from_numpy(image).permute(2, 0, 1).contiguous().float() / 255 for image in images[:batch]]
        sides = {name: our_side(backend, images[:batch]) for name, backend in backends.items()}
        for kind, model in theirs.items():
            sides[f"torchvision {kind}, eager"] = eager_side(model, photos)
            sides[f"torchvision {kind}, ONNX Runtime"] = exported_side(model, photos, options.threads)
        results.append(measure(sides, options.rounds, batch))
        show(results[-1])
        if options.json is not None:
            content = {"conditions": conditions, "results": results}
            atomic_write(options.json, json.dumps(content, indent=2) + "\n")
    return 0


def show(result: dict[str, Any]) -> None:
    """Print speeds and ratios as a table."""
    print(f"\nbatch {result['batch']}: images/s (median, best), processor seconds and detections an image")
    for name, speed in result["images_per_second"].items():
        best, seconds = result["best_images_per_second"][name], result["processor_seconds_per_image"][name]
        print(f"{name:52}{speed:8.3f}{best:8.3f}{seconds:8.3f}{result['detections_per_image'][name]:8.0f}")
    for kind in ("ratios", "ratios_of_least_times", "ratios_of_processor_time"):
        others = list(next(iter(result[kind].values())))
        print(f"{'how many times as fast, ' + kind.replace('_', ' '):50}" + "".join(f"{other:>36}" for other in others))
        for name, ratios_of_one in result[kind].items():
            line = "".join(f"{ratios_of_one[other]:>36.3f}" for other in others)
            print(f"  {name.removeprefix(f'{RECIPE} '):48}{line}")


if __name__ == "__main__":
    sys.exit(main())
