"""The files that the steps run: a small trained detector and a large one with random weights, in every precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
import torch

from benchmarks.random_detectors import CLASSES, our_model, photographs
from benchmarks.sides import write_form
from export.calibration import Calibration
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.forms import for_processor
from export.onnx_model.group_norm import split_group_norms
from export.onnx_model.network import cut_network, load_deployed
from export.quantization.calibrate import calibrate_cached, evenly_spaced, list_images
from export.quantization.convert import convert_model
from export.quantization.scheme import Scheme
from runtime.files import atomic_path
from runtime.manifest import Manifest
from train.api import train
from train.checkpoint import load_detector
from train.shapes.dataset import Settings, generate

SCHEMES = {
    f"{precision} {form}": Scheme(precision, target)  # type: ignore[arg-type]
    for precision in ("fp16", "bf16", "int8")
    for form, target in (("gpu", "tensorrt"), ("cpu", "cpu"))
}
CALIBRATED_ON = 32  # images


class Sizes(NamedTuple):
    """How much is trained and measured."""

    steps: int  # of the small detector's training
    train: int  # drawn images
    val: int
    recipe: str  # of the large detector
    canvas_hw: tuple[int, int]
    pictures: int  # different images of that size
    files: int  # of the data set that repeats them


FULL = Sizes(600, 1500, 200, "atss_r50_fpn_1x", (800, 1344), 16, 320)
REHEARSAL = Sizes(3, 16, 8, "atss_tiny", (192, 256), 4, 8)


class Files(NamedTuple):
    """Deployed files by name, such as "fp16 gpu": the precision, and the processor that the form is for."""

    deployed: dict[str, Path]
    failed: dict[str, str]  # what a conversion raised


def small_detector(folder: Path, sizes: Sizes) -> Path:
    """The checkpoint of a detector that is trained on drawn images, made if it is missing."""
    data, path = folder / "shapes", folder / "small.pt"
    if not path.exists():
        generate(data, Settings(sizes.train, sizes.val), progress=False)
        overrides = {
            "data.train_json": f"{data}/train.json",
            "data.train_images": f"{data}/train",
            "data.val_json": f"{data}/val.json",
            "data.val_images": f"{data}/val",
            "schedule.steps": sizes.steps,
            "run.evaluate_every": sizes.steps,
        }
        if torch.cuda.is_available():
            # The GPU does in the same minute what a CPU does in an hour, if enough processes make its images.
            overrides |= {"schedule.steps": 3 * sizes.steps, "run.evaluate_every": 3 * sizes.steps, "data.workers": 12}
        # A step that was killed while it trained goes on.
        result = train("atss_tiny", out=folder / "training", overrides=overrides, resume=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(Path(result.last).read_bytes())
    return path


def small_files(folder: Path, sizes: Sizes) -> Files:
    """The small detector in every precision and form. Only `small.onnx` has to travel: the others are made of it."""
    exported = folder / "small.onnx"
    if not exported.exists():
        loaded = load_detector(small_detector(folder, sizes))
        with atomic_path(exported) as temporary:
            temporary.write_bytes(checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 16)))
    return every_form(exported, list_images(judged_on(folder, sizes) / "train"))


def judged_on(folder: Path, sizes: Sizes) -> Path:
    """The drawn images that the small detector is measured on (val) and calibrated on (the first of train)."""
    data = folder / "judged"
    generate(data, Settings(CALIBRATED_ON, sizes.val), progress=False)
    return data


def large_files(folder: Path, sizes: Sizes, device: str) -> Files:
    """The large detector with random weights in every precision and form but bf16, calibrated on its own pictures.

    ONNX Runtime runs no bf16 file, and accuracy is measured with the small ones.
    """
    pictures = sorted(picture_set(folder, sizes).parent.glob("*.jpg"))
    images = photographs(pictures[0].parent, 4, *sizes.canvas_hw)
    schemes = {name: scheme for name, scheme in SCHEMES.items() if scheme.precision != "bf16"}
    return every_form(our_model(folder, sizes.recipe, images, device=device), pictures[:2], schemes)


def every_form(exported: Path, images: Sequence[Path], schemes: dict[str, Scheme] = SCHEMES) -> Files:
    """Files beside an exported float32 file: both forms of float32, their mixture, and the conversions `schemes`."""
    model, manifest = load_deployed(exported)
    ranges: list[Calibration] = []

    def calibration() -> Calibration:
        if not ranges:
            chosen = evenly_spaced(images, CALIBRATED_ON)
            cache = exported.with_suffix(".calibration.json")
            ranges.append(calibrate_cached(model, manifest, chosen, cache, False, may_replace=True))
        return ranges[0]

    def converted(scheme: Scheme) -> onnx.ModelProto:
        return convert_model(model, manifest, scheme, calibration() if scheme.is_quantized else None)

    thresholds = manifest.thresholds
    makers: dict[str, Callable[[], onnx.ModelProto]] = {
        "fp32 gpu": lambda: for_processor(model, thresholds, "gpu"),
        "fp32 gpu, split norms": lambda: split_group_norms(for_processor(model, thresholds, "gpu")),
    }
    for name, scheme in schemes.items():
        makers[name] = lambda scheme=scheme: converted(scheme)  # type: ignore[misc]
    found = Files({"fp32 cpu": exported}, {})
    for name, make in makers.items():
        path = exported.with_name(f"{exported.stem}.{name.replace(', ', '_').replace(' ', '_')}.onnx")
        try:
            if not path.exists():
                _write(path, make(), manifest if name.startswith("fp32") else None)
            found.deployed[name] = path
        except Exception as error:  # the others are made all the same
            found.failed[name] = f"{type(error).__name__}: {error}"
    return found


def _write(path: Path, model: onnx.ModelProto, manifest: Manifest | None) -> None:
    """Write a model, with `manifest` for its new form; without, it has its own already."""
    with atomic_path(path) as temporary:
        if manifest is not None:
            write_form(temporary, model, manifest)
        else:
            temporary.write_bytes(model.SerializeToString(deterministic=True))


def network_file(path: Path) -> Path:
    """The network of a deployed file as a file beside it: canvases to dense maps."""
    out = path.with_suffix(".network.onnx")
    if not out.exists():
        with atomic_path(out) as temporary:
            temporary.write_bytes(cut_network(load_deployed(path)[0]).SerializeToString())
    return out


def picture_set(folder: Path, sizes: Sizes) -> Path:
    """The annotations of a data set of large JPEGs, with the large detector's classes; made if missing."""
    import cv2

    out = folder / f"pictures_{sizes.canvas_hw[0]}x{sizes.canvas_hw[1]}"
    path = out / "annotations.json"
    if path.exists():
        return path
    out.mkdir(parents=True, exist_ok=True)
    height = sizes.canvas_hw[0]
    width = min(sizes.canvas_hw[1], height * 5 // 3)
    images = photographs(None, sizes.pictures, height, width)
    content: dict[str, list[dict[str, object]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)],
    }
    for number, image in enumerate(images, 1):
        name = f"{number:03}.jpg"
        cv2.imwrite(str(out / name), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        box = [width / 4, height / 4, width / 2, height / 2]
        content["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": number,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
