"""Tries every variant of an exported file in every consumer and prints a table.

    python benchmarks/portability.py last.pt --images data/shapes/val -o portability.md --json portability.json

A consumer runs the graph (ONNX Runtime and OpenVINO on the CPU, compared with the float32 file), builds it (TensorRT
for RTX, one compute capability at a time), or has its names checked (TensorRT 10.16 and 11.4: does our code use a name
that the version lacks?). A cell is the outcome or the reason of the refusal. Exit code 1: a cell is unexpected.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tensorrt_api.conformance import problems
from benchmarks.tensorrt_api.lists import load_all
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate, list_images
from export.quantization.convert import convert_model
from export.quantization.scheme import Scheme
from export.trt.build import build
from export.trt.engine import load_source
from export.trt.library import Library
from export.trt.profiles import make_profiles
from export.trt.settings import Settings
from export.verification.images import Case, load_comparison_images, make_case
from export.verification.matching import count_unmatched
from export.verification.tolerance import tolerance_of
from runtime.backends import BackendError
from runtime.backends.openvino_backend import shared_core
from runtime.backends.options import BackendOptions
from runtime.backends.ort.backend import OrtBackend
from runtime.backends.trt.engine import import_tensorrt
from runtime.detections import Detections, RawOutputs, postprocess
from runtime.errors import UserError, run_main
from runtime.images.preprocess import plan
from runtime.manifest import Manifest
from train.build import build_detector
from train.checkpoint import Checkpoint, LoadedDetector, load_detector, save_checkpoint
from train.config import Backbone
from train.config.paper_recipes import SYSTEMS

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0")
VARIANTS = (
    "fp32",
    "fp32 fixed",
    "fp16",
    "fp16 fixed",
    "bf16",
    "int8",
    "int8 fixed",
    "int8 cpu",
    "fp8",
    "dcn fp32",
    "dcn fp16",
)
ORT, OPENVINO = "ONNX Runtime", "OpenVINO"
NAMES = {"names 10.16": "10.16.1.11", "names 11.4": "11.4.0.106"}
CONSUMERS = (ORT, OPENVINO, *(f"RTX {c}" for c in CAPABILITIES), *NAMES)
# What no version or setting of ours changes; a cell that comes to work belongs out of this list.
REFUSED = {
    **{("bf16", consumer): "no bfloat16 convolution on a CPU" for consumer in (ORT,)},
    ("bf16", "RTX 7.5"): "Turing has no bfloat16",
    **{("fp8", f"RTX {c}"): "float8 came with Ada, 8.9" for c in ("7.5", "8.0", "8.6")},
    **{("int8 cpu", f"RTX {c}"): "asymmetric uint8 activations are for CPUs" for c in CAPABILITIES},
}


@dataclass(frozen=True)
class Cell:
    """The outcome of one variant in one consumer."""

    variant: str
    consumer: str
    works: bool
    detail: str  # what came out, or why it was refused
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether the outcome is the expected one: REFUSED lists the expected refusals."""
        return self.works == ((self.variant, self.consumer) not in REFUSED)


def main() -> int:
    """Make every variant, try it in every consumer and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint that training wrote (.pt)")
    parser.add_argument("--images", metavar="DIR", help="images to calibrate and compare on")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--consumers", nargs="+", choices=CONSUMERS, default=CONSUMERS)
    parser.add_argument("-o", "--output", metavar="TABLE.md", help="write the table to this file")
    parser.add_argument("--json", metavar="CELLS.json", help="write the cells, with the full reasons, to this file")
    options = parser.parse_args()
    loaded = load_detector(options.checkpoint)
    images = options.images or loaded.config.data.val_images
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(loaded, Path(folder), Path(images), options.variants)
        cells = []
        for cell in matrix(files, options.consumers, load_comparison_images(images)):
            mark = "" if cell.as_expected else "  NOT AS EXPECTED"
            print(
                f"{cell.variant:12}{cell.consumer:14}{'ok     ' if cell.works else 'refused'} {cell.detail[:90]}{mark}"
            )
            cells.append(cell)
    table = markdown(cells)
    print("\n" + table)
    if options.output:
        Path(options.output).write_text(table, encoding="utf-8")
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    return 0 if all(cell.as_expected for cell in cells) else 1


def make_files(
    loaded: LoadedDetector, folder: Path, images: Path, variants: Iterable[str] = VARIANTS
) -> dict[str, Path]:
    """Write the ONNX file of each variant: of this detector, and of a small deformable detector with random weights."""
    pre = loaded.config.preprocess
    side = -(-pre.long_side // pre.size_divisor) * pre.size_divisor  # of a canvas that holds images of any aspect
    bases: dict[str, Path] = {}
    files = {}
    for variant in variants:
        deformable, fixed = variant.startswith("dcn"), "fixed" in variant
        precision = next(word for word in variant.split() if word not in ("dcn", "fixed", "cpu"))
        key = f"{'dcn' if deformable else 'plain'}{' fixed' if fixed else ''}"
        if key not in bases:
            detector = small_deformable(loaded, folder / "dcn.pt") if deformable else loaded
            bases[key] = folder / f"{key}.onnx"
            shapes = input_shapes(detector.config.preprocess, 16, (side, side) if fixed else None)
            bases[key].write_bytes(checkpoint_to_graph(detector, shapes))
        files[variant] = folder / f"{variant}.onnx"
        model, manifest = load_deployed(bases[key])
        if precision != "fp32":
            needs = precision in ("int8", "fp8")
            ranges = calibrate(model, manifest, list_images(images, 32), progress=False) if needs else None
            scheme = Scheme(precision, "cpu" if "cpu" in variant else "tensorrt")  # type: ignore[arg-type]
            model = convert_model(model, manifest, scheme, ranges)
        files[variant].write_bytes(model.SerializeToString())
    return files


def small_deformable(loaded: LoadedDetector, path: Path) -> LoadedDetector:
    """A narrow detector for the same classes, with deformable towers, random weights and many detections."""
    torch.manual_seed(0)
    model = SYSTEMS["atss_dcn_r50_fpn_1x"]().model
    model = replace(
        model,
        backbone=Backbone("resnet18", weights="none", stem_channels=8),
        pyramid=replace(model.pyramid, channels=16),
        head=replace(model.head, convolutions=2, group_norm_groups=4, prior_probability=0.2),
    )
    config = replace(loaded.config, recipe="deformable towers", model=model)
    detector = build_detector(model, len(loaded.classes.names), config.preprocess)
    for name, parameter in detector.named_parameters():
        if ".offset." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_checkpoint(path, Checkpoint(config, loaded.classes, 1, detector.state_dict(), None, {}, {}, None, -1.0))
    return load_detector(path)


def matrix(files: dict[str, Path], consumers: Iterable[str], images: list[np.ndarray]) -> Iterable[Cell]:
    """Try every file in every consumer, in turn."""
    for variant, path in files.items():
        _, manifest = load_deployed(path)
        case = _case(manifest, images)
        base = next((files[name] for name in (variant.rsplit(maxsplit=1)[0] + " fp32", "fp32") if name in files), path)
        for consumer in consumers:
            started = time.perf_counter()
            try:
                works, detail = True, _try(consumer, path, manifest, case, base)
            except UserError as error:
                works, detail = False, str(error)
            yield Cell(variant, consumer, works, detail, round(time.perf_counter() - started, 2))


def _try(consumer: str, path: Path, manifest: Manifest, case: Case, base: Path) -> str:
    """The outcome. Raises UserError for a refusal."""
    if consumer in NAMES:
        return check_names(NAMES[consumer])
    if consumer.startswith("RTX "):
        library = Library("rtx", import_tensorrt("rtx"), None)
        settings = Settings(make_profiles(manifest)[:1], (consumer.split()[1],))
        built = build(library, path, load_source(path).graph, settings)
        return f"built {len(built.data) / 1e6:.0f} MB in {built.seconds:.1f} s"
    run = run_ort if consumer == ORT else run_openvino
    expected, found = run_ort(base, case), run(path, case)
    total = sum(map(len, expected)) + sum(map(len, found))
    same = tolerance_of(manifest.precision, None).same
    pairs = list(zip(expected, found, strict=True))
    alone = sum(count_unmatched(a, b, same) + count_unmatched(b, a, same) for a, b in pairs)
    return f"{1 - alone / max(total, 1):.1%} of {total} rows as the float32 file's in ONNX Runtime"


def run_ort(path: Path, case: Case) -> list[Detections]:
    """Detections of the two images in ONNX Runtime on the CPU."""
    backend = OrtBackend(path, BackendOptions(backend="cpu", allow_saturation=True))
    return postprocess(backend.infer(case.images, case.image_sizes), backend.manifest.thresholds)


def run_openvino(path: Path, case: Case) -> list[Detections]:
    """Run the file in OpenVINO, an independent reader, in float32 where the graph leaves the precision open."""
    try:
        core = shared_core()
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = compiled({"images": case.images, "image_sizes": case.image_sizes})
    except RuntimeError as error:
        raise BackendError(f"{path.name}: OpenVINO: {' '.join(str(error).split())[:300]}") from error
    raw = RawOutputs(*(outputs[name] for name in RawOutputs.__dataclass_fields__))
    return postprocess(raw, load_deployed(path)[1].thresholds)


def check_names(version: str) -> str:
    """Check that our code's names and calls are those of this version. Raises UserError with the wrong uses."""
    root = Path(__file__).resolve().parents[1]
    lists = [library for library in load_all() if library.version == version]
    if not lists:
        raise UserError(f"benchmarks/tensorrt_api has no list of {version}; make one with read_names.py")
    found = [
        f"{file.name} {line}"
        for package in ("export", "runtime")
        for file in sorted((root / package).rglob("*.py"))
        for line in problems(file.read_text(encoding="utf-8"), lists, is_trt="trt" in file.relative_to(root).parts)
    ]
    if found:
        raise UserError("; ".join(found))
    return "names exist"


def _case(manifest: Manifest, images: list[np.ndarray]) -> Case:
    """Two images on the graph's fixed canvas, or on the recipe's canvas."""
    shapes = manifest.inputs
    canvas = plan((3, 4), manifest.preprocess).canvas_hw
    return make_case(shapes.nearest_batch(2), shapes.nearest_canvas(canvas), images, manifest.preprocess.pad_value)


def markdown(cells: list[Cell]) -> str:
    """The table: a row per variant, a column per consumer, the reasons of refusals below."""
    consumers = list(dict.fromkeys(cell.consumer for cell in cells))
    lines = [f"| | {' | '.join(consumers)} |", f"| --- {'| --- ' * len(consumers)}|"]
    found = {(cell.variant, cell.consumer): cell for cell in cells}
    for variant in dict.fromkeys(cell.variant for cell in cells):
        row = [_short(found[variant, consumer]) for consumer in consumers if (variant, consumer) in found]
        lines.append(f"| {variant} | {' | '.join(row)} |")
    reasons = {(c.variant, REFUSED.get((c.variant, c.consumer), c.detail)) for c in cells if not c.works}
    lines += ["", *sorted(f"- {variant}: {reason}" for variant, reason in reasons)]
    return "\n".join(lines) + "\n"


def _short(cell: Cell) -> str:
    if not cell.works:
        return "refused"
    return cell.detail.split(" of ")[0] if cell.consumer in (ORT, OPENVINO) else cell.detail.split(" in ")[0]


if __name__ == "__main__":
    run_main(main)
