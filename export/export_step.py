"""The step from a loaded checkpoint to ONNX files: trace, verify, publish, and convert where asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from runtime.images.limit import max_pixels
from runtime.manifest import InputShapes, Precision
from runtime.temporaries import scratch_folder
from train.checkpoint import LoadedDetector, load_detector
from train.trainer.evaluation import detector_manifest

from .arguments import BATCH_MAX, default_calibration
from .deepstream.variant import to_variant
from .deepstream.verify import verify_variant
from .graph.checkpoint import checkpoint_to_graph
from .graph.shapes import ExportError, input_shapes
from .onnx_model.network import load_deployed, parse_deployed
from .onnx_model.processor import Processor
from .quantization.calibrate import calibration_images
from .quantization.convert import load_float32
from .quantization.scheme import CALIBRATION_IMAGES, Scheme
from .quantize_step import publish_conversion
from .results import ExportedModel
from .trt.profiles import make_profiles
from .trt.settings import BuildError
from .verification.checkpoint import verify_export
from .verification.checks import Check
from .verification.images import load_comparison_images
from .verification.publish import failed_path, publish

logger = logging.getLogger(__name__)


def publish_export(
    loaded: LoadedDetector,
    out: Path,
    shapes: InputShapes,
    scheme: Scheme,
    images: str | None = None,
    calibrate_on: str | None = None,
    show_progress: bool = False,
    processor: Processor = "cpu",
) -> ExportedModel:
    """Export a checkpoint to `out`, and where the scheme isn't float32 convert that file to OUT.PRECISION.onnx.

    The exported file has the form for `processor`, the converted one the form that the scheme says.

    Each file is published only after its verification: the export against the checkpoint, the conversion against the
    export. Both are compared on images of the folder `images`, by default on the checkpoint's validation images. int8
    and fp8 are calibrated on the folder `calibrate_on`, by default on the checkpoint's training images. Images above
    the limit of the checkpoint's training (`data.max_megapixels`) are left out. Returns the last file, or the first
    that failed. Raises UserError.
    """
    calibrated_on = _calibration_images(calibrate_on, loaded, scheme)  # first: they may be missing
    limit = max_pixels(loaded.config.data.max_megapixels)
    compare_on = load_comparison_images(images, loaded.config.data.val_images, calibrated_on, max_pixels=limit)
    logger.info(f"exporting {shapes.summary()} …")
    verification = publish(
        out,
        lambda: checkpoint_to_graph(loaded, shapes, processor),
        lambda temporary: verify_export(loaded, temporary, compare_on),
    )
    written = out if verification.passed else failed_path(out)
    size = written.stat().st_size
    if verification.passed:
        classes = len(loaded.classes.names)
        logger.info(f"{out}  {size / 1e6:.1f} MB, {classes} classes, {shapes.summary()}")
        if scheme.precision != "fp32":
            converted = out.with_suffix(f".{scheme.precision}.onnx")
            return publish_conversion(
                load_float32(out),
                converted,
                scheme,
                calibrated_on,
                compare_on=compare_on,
                show_progress=show_progress,
                max_pixels=limit,
            )
    _, manifest = load_deployed(written)
    return ExportedModel(written, size, manifest, verification)


def publish_variant(loaded: LoadedDetector, out: Path, shapes: InputShapes, images: str | None = None) -> ExportedModel:
    """Export a checkpoint to `out` with the inputs and outputs of DeepStream's nvinfer.

    The file is published only after two verifications: the graph with this toolkit's inputs and outputs against the
    checkpoint, and the file against that graph, bit by bit. Raises UserError.
    """
    limit = max_pixels(loaded.config.data.max_megapixels)
    compare_on = load_comparison_images(images, loaded.config.data.val_images, max_pixels=limit)
    logger.info(f"exporting {shapes.summary()} for DeepStream …")
    original = checkpoint_to_graph(loaded, shapes, "gpu")
    model, manifest = parse_deployed(original, out)
    variant = to_variant(model, manifest)

    def verify(temporary: Path) -> list[Check]:
        with scratch_folder() as folder:
            path = folder / out.name
            path.write_bytes(original)
            written, stated = load_deployed(temporary)
            return [
                *verify_export(loaded, path, compare_on),
                *verify_variant(model, written, stated, compare_on),
            ]

    verification = publish(out, lambda: variant.SerializeToString(deterministic=True), verify)
    written = out if verification.passed else failed_path(out)
    size = written.stat().st_size
    if verification.passed:
        logger.info(f"{out}  {size / 1e6:.1f} MB for DeepStream, {shapes.summary()}")
    return ExportedModel(written, size, load_deployed(written)[1], verification)


def publish_export_for_engine(
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    *,
    batch: Sequence[int] | None = None,  # least, tuned for, largest
    shapes: Sequence[str] | None = None,
    canvas_hw: tuple[int, int] | None = None,
    images: str | None = None,
    calibrate_on: str | None = None,
    show_progress: bool = False,
) -> ExportedModel:
    """Export a checkpoint into `folder`, in the precision of the engine that will be built from it with these profiles.

    The largest batch is the profiles' (`batch`). Raises UserError for `batch` and `shapes` that don't fit before the
    export, and BuildError where a file failed its verification.
    """
    loaded = load_detector(checkpoint)
    inputs = input_shapes(loaded.config.preprocess, max(*batch, 1) if batch else BATCH_MAX, canvas_hw)
    make_profiles(detector_manifest(loaded.config, loaded.classes, inputs), batch, shapes)
    exported, scheme = folder / f"{checkpoint.stem}.onnx", Scheme(precision)
    files = [exported] if precision == "fp32" else [exported, exported.with_suffix(f".{precision}.onnx")]
    if scheme.is_quantized:
        files.append(default_calibration(exported))
    logger.info(f"writing {', '.join(map(str, files))} (files of these names are replaced)")
    written = publish_export(loaded, exported, inputs, scheme, images, calibrate_on, show_progress)
    if not written.passed:
        raise BuildError(
            f"{checkpoint}: its numbers change too much on the way (see the table): no engine; try --precision fp32, "
            "or other images with --images"
        )
    return written


def _calibration_images(folder: str | None, loaded: LoadedDetector, scheme: Scheme) -> list[Path]:
    """The images of the folder, or else the checkpoint's training images; none where no ranges are needed."""
    data = loaded.config.data
    if folder is not None or not scheme.is_quantized:
        return calibration_images(folder, None, CALIBRATION_IMAGES, scheme)
    if not Path(data.train_images).is_dir() or not Path(data.train_json).is_file():
        raise ExportError(
            f"--precision {scheme.precision} is calibrated on images, and the checkpoint's training images are not "
            f"here ({data.train_json or 'the checkpoint names none'}): give --calibrate-on DIR"
        )
    return calibration_images(data.train_images, data.train_json, CALIBRATION_IMAGES, scheme)
