"""The step from a float32 file to another precision: calibrate, convert, verify, publish. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.files import require_writable
from runtime.images import MAX_PIXELS

from .arguments import default_calibration
from .onnx_model.network import load_deployed
from .onnx_model.precision import count_convolutions, format_counts
from .quantization.calibrate import calibrate_cached
from .quantization.convert import Float32Model, convert_model
from .quantization.goal import AccuracyGoal
from .quantization.mixed import RANKING_IMAGES, convolutions_in_float
from .quantization.scheme import Scheme
from .results import ExportedModel
from .verification.conversion import verify_conversion
from .verification.images import COMPARISON_IMAGES, readable_images
from .verification.publish import failed_path, publish

SKIPPED_NAMED = 5  # images that a warning names one by one

logger = logging.getLogger(__name__)


def publish_conversion(
    source: Float32Model,
    out: Path,
    scheme: Scheme,
    images: Sequence[Path] = (),
    cache: Path | None = None,
    goal: AccuracyGoal | None = None,
    compare_on: Sequence[np.ndarray] = (),
    show_progress: bool = False,
    *,
    max_pixels: int = MAX_PIXELS,
) -> ExportedModel:
    """Convert a float32 file, and publish the new file at `out` only after its verification against the old one.

    int8 and fp8 are calibrated on `images`. Their ranges are kept in `cache`, which must fit if it exists; by default
    in NAME.calibration.json beside the source, which is replaced where it doesn't fit. The files are compared on
    `compare_on` (uint8 [h, w, 3] RGB), which should hold images that were not calibrated on: ranges enclose what they
    were measured on. Without any they are compared on the first of `images`. Raises UserError.
    """
    require_writable(out)
    calibration, in_float = None, list[str]()
    if scheme.is_quantized:
        path = cache or default_calibration(source.path)
        calibration = calibrate_cached(
            source.model,
            source.manifest,
            images,
            path,
            show_progress,
            may_replace=cache is None,
            max_pixels=max_pixels,
        )
        logger.info(f"ranges of {calibration.images} images: {path}")
        _warn_of_skipped(calibration.skipped)
        if goal is not None:
            rank_on = readable_images(images, RANKING_IMAGES, max_pixels=max_pixels)
            in_float = convolutions_in_float(source, scheme, calibration, rank_on, goal, show_progress)
    converted = convert_model(source.model, source.manifest, scheme, calibration, in_float)
    compared_on = compare_on or readable_images(images, COMPARISON_IMAGES, max_pixels=max_pixels)
    verification = publish(
        out,
        lambda: converted.SerializeToString(deterministic=True),
        lambda temporary: verify_conversion(source.path, temporary, compared_on),
    )
    written = out if verification.passed else failed_path(out)
    size, before = written.stat().st_size, source.path.stat().st_size
    _, manifest = load_deployed(written)
    if verification.passed:
        logger.info(
            f"{out}  {size / 1e6:.1f} MB ({size / before:.2f} of {source.path.name}), convolutions: "
            f"{format_counts(count_convolutions(converted))}"
        )
        if scheme.precision == "int8" and scheme.target == "tensorrt":
            logger.info("for TensorRT; on a CPU take --target cpu, which is faster there and exact on every processor")
        elif scheme.precision == "int8" and not manifest.sums_fit_16_bits:
            logger.info(
                "for processors with VNNI or ARM's dot product; others refuse it, because its sums need more than "
                "16 bits there"
            )
    return ExportedModel(written, size, manifest, verification)


def _warn_of_skipped(skipped: Sequence[str]) -> None:
    for line in skipped[:SKIPPED_NAMED]:
        logger.warning(f"warning: skipped {line}")
    if skipped:
        logger.warning(f"warning: {len(skipped)} images could not be read")
