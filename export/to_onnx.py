"""A checkpoint becomes one ONNX file for ONNX Runtime, TensorRT and TensorRT for RTX: network, postprocessing, NMS.

    python -m export.to_onnx runs/mine/best.pt -o mine.onnx
    python -m export.to_onnx runs/mine/best.pt --canvas 800 1344 --batch-max 4
    python -m export.to_onnx runs/mine/best.pt -o mine.onnx --precision int8    # mine.onnx and mine.int8.onnx

The file takes every batch up to --batch-max and every canvas within its range whose sides are multiples of the
recipe's size divisor (32, unless it says otherwise), unless --canvas fixes one. It describes itself (classes,
preprocessing, thresholds, origin) in its metadata. It is compared with the checkpoint before it gets its name
(`export.verify`); one that differs too much is left as NAME.failed.onnx.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/to_onnx.py`: become `python -m export.to_onnx`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.to_onnx", run_name="__main__", alter_sys=True)

import argparse
import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import torch

from runtime.command_names import TO_ONNX
from runtime.errors import UserError, run_main
from runtime.manifest import METADATA_KEY, InputShapes, Precision, Preprocess, to_json
from train.geometry.anchors import anchors_per_cell
from train.model.backbones import COARSEST
from train.model.build import build_postprocess
from train.trainer.checkpoint import LoadedDetector, load_detector
from train.trainer.evaluation import detector_manifest

from .graph.deployable import DeployableGraph, GraphOutputs, candidate_limits, dense_names
from .onnx_model.file import INPUT_NAMES, graph_sha256, keep_outputs, strip
from .quantization.calibration import IMAGES
from .quantization.convert import Scheme
from .quantization.qdq import Target
from .quantize import calibration_images, quantize
from .verify.checkpoint import verify
from .verify.images import comparison_images
from .verify.publish import write_verified

OPSET = 21  # the first whose GroupNormalization exporters and TensorRT both treat as one operator
MIN_SIDE, MAX_SIDE = 64, 1344  # px, of a dynamic canvas, rounded up to what its sides are multiples of
EXAMPLE_HW = (192, 256)  # traced with, likewise; they differ, lest the exporter take one for the other


class ExportError(UserError):
    """A checkpoint that can't be exported as asked."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out = _output_path(options.checkpoint, options.output)
    loaded = load_detector(options.checkpoint)
    canvas_hw = tuple(options.canvas) if options.canvas else None
    shapes = input_shapes(loaded.config.preprocess, options.batch_max, canvas_hw)
    scheme = Scheme(options.precision, options.target)
    images = _calibration_images(options.calibrate_on, loaded, scheme)  # before the export: they may be missing
    compare_on = comparison_images(options.images, loaded.config.data.val_images, images)
    code = export_verified(loaded, out, shapes, compare_on)
    if code or scheme.precision == "fp32":
        return code
    return quantize(out, out.with_suffix(f".{scheme.precision}.onnx"), scheme, images, compare_on=compare_on)


def export_verified(loaded: LoadedDetector, out: Path, shapes: InputShapes, compare_on: Sequence[np.ndarray]) -> int:
    """Export, compare with the checkpoint on these images, print what came out; 0, or 1 where they differ too much.

    An existing file is replaced only by one that passed. Raises UserError for what the user can mend.
    """
    print(f"exporting {describe(shapes)} …", flush=True)
    written = write_verified(out, lambda: export_model(loaded, shapes), lambda path: verify(loaded, path, compare_on))
    if written:
        print(f"{out}  {out.stat().st_size / 1e6:.1f} MB, {len(loaded.classes.names)} classes, {describe(shapes)}")
    return 0 if written else 1


def _calibration_images(folder: str | None, loaded: LoadedDetector, scheme: Scheme) -> list[Path]:
    """The images of the folder; those that the checkpoint was trained on; none for a precision without ranges."""
    data = loaded.config.data
    if folder is not None or not scheme.is_quantized:
        return calibration_images(folder, None, IMAGES, scheme)
    if not Path(data.train_images).is_dir() or not Path(data.train_json).is_file():
        raise ExportError(
            f"--precision {scheme.precision} is calibrated on images, and those that this checkpoint was trained on "
            f"are not here ({data.train_json or 'none are named'}): give --calibrate-on DIR"
        )
    return calibration_images(data.train_images, data.train_json, IMAGES, scheme)


def export_model(loaded: LoadedDetector, shapes: InputShapes) -> bytes:
    """The bytes of the ONNX file, with its manifest in the metadata."""
    settings = loaded.config
    scores_per_cell = anchors_per_cell(settings.model.anchors) * len(loaded.classes.names)
    limits = candidate_limits(shapes, settings.model.pyramid.levels, scores_per_cell, settings.thresholds)
    graph = DeployableGraph(loaded.detector, build_postprocess(settings.model, settings.thresholds), limits)
    dense = dense_names(settings.model.pyramid.levels, settings.model.head.has_centerness)
    model = trace(graph, shapes, dense, settings.preprocess.size_divisor)
    manifest = dataclasses.replace(
        detector_manifest(settings, loaded.classes, shapes),
        checkpoint_sha256=loaded.sha256,
        graph_sha256=graph_sha256(model),
        libraries={name: metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
        ap=loaded.ap if loaded.ap is not None and loaded.ap >= 0 else None,  # −1: nothing to be found
    )
    model.metadata_props.add(key=METADATA_KEY, value=to_json(manifest))
    return model.SerializeToString(deterministic=True)


def trace(graph: DeployableGraph, shapes: InputShapes, dense: list[str], divisor: int) -> onnx.ModelProto:
    """The graph as ONNX: the contract's outputs; the dense maps are values inside, under the names `dense`.

    Dynamic sides are multiples of `divisor`, as the bounds of `shapes` are.
    """
    height, width = _example_sides(shapes, divisor)
    batch = min(2, shapes.batch_max)
    images = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    image_sizes = torch.tensor([[height, width]] * batch, dtype=torch.int32)
    dynamic: dict[int, object] = {}
    if shapes.batch_min < shapes.batch_max:
        dynamic[0] = torch.export.Dim("batch", min=shapes.batch_min, max=shapes.batch_max)
    for axis, name, low, high in (
        (1, "height", shapes.height_min, shapes.height_max),
        (2, "width", shapes.width_min, shapes.width_max),
    ):
        if low < high:
            dynamic[axis] = divisor * torch.export.Dim(f"{name}_{divisor}", min=low // divisor, max=high // divisor)
    sizes_dynamic = {0: dynamic[0]} if 0 in dynamic else {}
    with quiet():
        program = torch.onnx.export(
            graph.eval(),
            (images, image_sizes),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUT_NAMES),
            output_names=[*GraphOutputs._fields, *dense],
            dynamic_shapes=(dynamic, sizes_dynamic),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    keep_outputs(model, GraphOutputs._fields)
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def input_shapes(preprocess: Preprocess, batch_max: int, canvas_hw: tuple[int, int] | None = None) -> InputShapes:
    """The range of inputs to export for. Raises ExportError for a canvas that the graph or the images don't fit."""
    divisor = preprocess.size_divisor
    if divisor % COARSEST:
        raise ExportError(
            f"the checkpoint's preprocess.size_divisor is {divisor}, which its network doesn't take; expected a "
            f"multiple of {COARSEST}: train it with one"
        )
    if not 1 <= batch_max <= 1024:
        raise ExportError(f"--batch-max {batch_max}: expected 1 to 1024")
    if canvas_hw is None:
        least, largest = _round_up(MIN_SIDE, divisor), _round_up(max(MAX_SIDE, preprocess.long_side), divisor)
        return InputShapes(1, batch_max, least, largest, least, largest)
    height, width = canvas_hw
    if height < divisor or width < divisor or height % divisor or width % divisor:
        raise ExportError(f"--canvas {height} {width}: expected height and width in multiples of {divisor}")
    if min(height, width) < preprocess.short_side:
        raise ExportError(
            f"--canvas {height} {width}: images are resized to a shorter side of {preprocess.short_side} px and "
            f"would not fit; give at least {_round_up(preprocess.short_side, divisor)} for both"
        )
    return InputShapes(1, batch_max, height, height, width, width)


def describe(shapes: InputShapes) -> str:
    """One phrase: the canvases and batches that a graph takes."""
    if shapes.height_min == shapes.height_max and shapes.width_min == shapes.width_max:
        canvas = f"canvas {shapes.height_min}×{shapes.width_min} (height × width)"
    else:
        canvas = f"canvases {shapes.height_min}×{shapes.width_min} to {shapes.height_max}×{shapes.width_max}"
    return f"{canvas}, batch {shapes.batch_min}-{shapes.batch_max}"


def _example_sides(shapes: InputShapes, divisor: int) -> tuple[int, int]:
    height, width = (_round_up(side, divisor) for side in EXAMPLE_HW)
    width += divisor * (height == width)
    return (
        min(max(height, shapes.height_min), shapes.height_max),
        min(max(width, shapes.width_min), shapes.width_max),
    )


def _round_up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own internals; errors still arrive as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _output_path(checkpoint: str, output: str | None) -> Path:
    out = Path(output) if output else Path(checkpoint).with_suffix(".onnx")
    if out.suffix != ".onnx":
        raise ExportError(f"-o {out}: expected a name that ends in .onnx, by which every runtime knows the format")
    if out.resolve() == Path(checkpoint).resolve():
        raise ExportError(f"{out} is the checkpoint itself: name another file with -o")
    if out.is_dir():
        raise ExportError(f"-o {out}: that is a folder; give the file's name as well")
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=TO_ONNX, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint that training wrote (.pt)")
    parser.add_argument("-o", "--output", metavar="OUT.onnx", help="file to write; default: CKPT with the suffix .onnx")
    parser.add_argument("--batch-max", type=int, default=16, metavar="N", help="largest batch (default 16)")
    parser.add_argument("--images", metavar="DIR", help="compare on images of this folder; default: validation's")
    parser.add_argument("--canvas", type=int, nargs=2, metavar=("H", "W"), help="fix the canvas; default: any in range")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="write a second file OUT.PRECISION.onnx (export.quantize); default: the float32 one alone",
    )
    parser.add_argument("--target", choices=get_args(Target), default="tensorrt", help="of int8 (%(default)s)")
    parser.add_argument("--calibrate-on", metavar="DIR", help="images for int8 and fp8; default: training's")
    return parser


if __name__ == "__main__":
    run_main(main)
