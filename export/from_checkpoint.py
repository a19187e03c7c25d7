"""From a checkpoint to the ONNX file that an engine is built of, in any precision, with the usual checks on the way."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError
from runtime.manifest import Precision
from train.checkpoint import load_detector

from .calibration import Calibration, calibrate_cached, find_images, shows_progress
from .network import load_deployed
from .pictures import find_pictures
from .quantize import convert
from .to_onnx import export_verified, input_shapes


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    batch_max: int = 16,
    canvas_hw: tuple[int, int] | None = None,
    images: Path | None = None,
) -> Path:
    """Export `checkpoint` into `folder` as NAME.onnx, compare both, convert it to NAME.PRECISION.onnx; the last file.

    int8 and fp8 are calibrated on the pictures in `images`, or on those that the checkpoint was trained on. Raises
    UserError.
    """
    loaded = load_detector(checkpoint)
    exported = folder / f"{checkpoint.stem}.onnx"
    shapes = input_shapes(loaded.config.preprocess, batch_max, canvas_hw)
    pictures = find_pictures(str(images) if images else None, loaded.config.data.val_images)
    if export_verified(loaded, exported, shapes, pictures):
        raise UserError(f"{checkpoint}: its export differs from it (see the table above), so no engine is built of it")
    if precision == "fp32":
        return exported
    converted = folder / f"{checkpoint.stem}.{precision}.onnx"
    calibration = None
    if precision in ("int8", "fp8"):
        calibration = _calibrate(exported, images or _training_pictures(loaded.config.data.train_images, precision))
    convert(exported, converted, precision, calibration)
    return converted


def _calibrate(exported: Path, images: Path) -> Calibration:
    model, manifest = load_deployed(exported)
    cache = exported.with_name(f"{exported.stem}.calibration.json")
    return calibrate_cached(model, manifest, find_images(images), cache, shows_progress())


def _training_pictures(folder: str, precision: Precision) -> Path:
    if not folder or not Path(folder).is_dir():
        raise UserError(
            f"--precision {precision} is calibrated on pictures, and those that this checkpoint was trained on are not "
            f"here ({folder or 'none are named'}): give --images DIR"
        )
    return Path(folder)
