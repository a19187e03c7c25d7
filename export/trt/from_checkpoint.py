"""From a checkpoint to the file that an engine is built of, as export/to_onnx.py goes: comparisons included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.manifest import Precision
from train.trainer.checkpoint import load_detector
from train.trainer.evaluation import detector_manifest

from .. import to_onnx
from ..quantization.convert import Scheme
from .profiles import make_profiles
from .settings import BuildError


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    *,
    batch: Sequence[int] | None = None,  # least, tuned for, most
    shapes: Sequence[str] | None = None,
    canvas_hw: Sequence[int] | None = None,
    images: str | None = None,
    calibrate_on: str | None = None,
) -> Path:
    """Export a checkpoint into `folder` and convert it; the file to build of. Options as export/to_trt.py has them.

    Raises UserError for what the user can mend; what is wrong with `batch` and `shapes` before the export.
    """
    loaded = load_detector(checkpoint)
    height_width = (canvas_hw[0], canvas_hw[1]) if canvas_hw else None
    inputs = to_onnx.input_shapes(loaded.config.preprocess, max(*batch, 1) if batch else 1, height_width)
    make_profiles(detector_manifest(loaded.config, loaded.classes, inputs), batch, shapes)
    exported = folder / f"{checkpoint.stem}.onnx"
    converted = exported.with_suffix(f".{precision}.onnx")
    files = [exported] if precision == "fp32" else [exported, converted]
    if Scheme(precision).is_quantized:
        files.append(exported.with_suffix(".calibration.json"))
    print(f"writing {', '.join(map(str, files))} (files of these names are replaced)", flush=True)
    words = [str(checkpoint), "-o", str(exported), "--precision", precision]
    if batch:
        words += ["--batch-max", str(batch[2])]
    if canvas_hw:
        words += ["--canvas", *map(str, canvas_hw)]
    if images:
        words += ["--images", images]
    if calibrate_on:
        words += ["--calibrate-on", calibrate_on]
    if to_onnx.main(words):
        raise BuildError(
            f"{checkpoint}: its numbers change too much on the way (see the table): no engine; try --precision fp32, "
            "or other images with --images"
        )
    return exported if precision == "fp32" else converted
