"""The export as functions: checkpoint → ONNX → other precisions → engines, and the verification of each.

    from export.api import build_engine, export_onnx, quantize, verify

    exported = export_onnx("runs/mine/best.pt", "mine.onnx")
    half = quantize("mine.onnx", "fp16")
    if half.passed:
        build_engine(half.path)

The commands `python -m export.to_onnx`, `quantize`, `to_trt` and `verify` are shells over these functions. What the
user can mend is raised as a UserError of one line, which names an argument as the command spells it. Progress goes to
the logger `export` (level INFO), warnings too (WARNING). Importing this module loads neither torch nor onnx: a
function loads what it needs, and raises MissingLibraryError where that isn't installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from runtime.backends.engine_file import Flavor
from runtime.command_names import TO_ONNX
from runtime.decoders import Decode
from runtime.images import MAX_PIXELS
from runtime.manifest import Interface, Precision

from . import arguments
from .arguments import BATCH_MAX, AnyPath, folder_name, optional_path, require_libraries
from .calibration import Method
from .quantization.scheme import CALIBRATION_IMAGES, Scheme, Target
from .results import BuiltEngine, ExportedModel
from .trt.library import choose_library
from .trt.profiles import make_profiles
from .trt.settings import HardwareCompatibility, Settings, check_settings, default_capabilities, engine_paths
from .verification.checks import Verification


def export_onnx(
    checkpoint: AnyPath,
    out: AnyPath | None = None,
    *,
    batch_max: int = BATCH_MAX,
    canvas_hw: tuple[int, int] | None = None,
    precision: Precision = "fp32",
    target: Target | None = None,
    images: AnyPath | None = None,
    calibrate_on: AnyPath | None = None,
    interface: Interface = "toolkit",
    show_progress: bool = False,
) -> ExportedModel:
    """Export a checkpoint to one ONNX file: network, postprocessing and NMS, for ONNX Runtime and TensorRT.

    The file takes `images` uint8 [B, H, W, 3] and `image_sizes` int32 [B, 2], and returns detections
    (`export.onnx_model.nms.with_nms`). It is published only after its verification against the checkpoint.

    Args:
        checkpoint: file that training wrote (.pt).
        out: file to write; by default the checkpoint's name with the suffix .onnx.
        batch_max: largest batch B, 1 to 1024.
        canvas_hw: fixes the canvas H × W in px; by default any canvas in a range whose sides are multiples of the
            recipe's size divisor.
        precision: other than fp32, a second file OUT.PRECISION.onnx is made of the first as `quantize` does.
        target: what the file in `precision` is for: "tensorrt" (GPUs), "cpu" or "cpu-vnni" (see `quantize`). The
            default is a GPU, and for float32 a CPU, because `build_engine` gives its graph the form for GPUs.
        images: folder of images to verify on; by default the checkpoint's validation images, or synthetic ones.
        calibrate_on: folder of images to calibrate int8 and fp8 on; by default the checkpoint's training images.
        interface: "deepstream" for the inputs and outputs of DeepStream's nvinfer, in float32 (`export.deepstream`).
        show_progress: whether to show a progress bar on stderr.

    Returns:
        The file in `precision`; or the first file that failed its verification, whose path is NAME.failed.onnx.

    Raises:
        UserError: the checkpoint can't be read or exported as asked, images are missing, `out` can't be written.

    Examples:
        >>> export_onnx("runs/mine/best.pt", "mine.onnx", canvas_hw=(800, 1344), batch_max=4).passed
        True

    """
    path, scheme = arguments.exported_path(Path(checkpoint), out), Scheme(precision, target or "tensorrt")
    arguments.check_export((checkpoint, images, calibrate_on), path, scheme, interface)
    libraries = "torch", "torchvision", "onnx", "onnxscript", "onnxruntime"
    require_libraries(libraries, "an export needs it: pip install {name}")
    from train.checkpoint import load_detector

    from .export_step import publish_export, publish_variant
    from .graph.shapes import input_shapes

    loaded = load_detector(Path(checkpoint))
    shapes = input_shapes(loaded.config.preprocess, batch_max, canvas_hw)
    if interface == "deepstream":
        return publish_variant(loaded, path, shapes, folder_name(images))
    processor = scheme.processor if precision == "fp32" and target is not None else "cpu"
    return publish_export(
        loaded, path, shapes, scheme, folder_name(images), folder_name(calibrate_on), show_progress, processor
    )


def quantize(
    model: AnyPath,
    precision: Precision,
    out: AnyPath | None = None,
    *,
    target: Target = "tensorrt",
    images: AnyPath | None = None,
    annotations: AnyPath | None = None,
    calibration_count: int = CALIBRATION_IMAGES,
    calibration: AnyPath | None = None,
    method: Method = "max",
    max_ap_loss: float | None = None,
    val_annotations: AnyPath | None = None,
    val_images: AnyPath | None = None,
    max_pixels: int = MAX_PIXELS,
    show_progress: bool = False,
) -> ExportedModel:
    """Convert an exported float32 file to fp16, bf16, int8 or fp8. Needs onnx and onnxruntime, no torch.

    Only the network changes; scores, boxes and NMS stay float32. The new file is published only after its verification
    against the float32 file.

    Args:
        model: float32 file that `export_onnx` wrote.
        precision: "fp16", "bf16", "int8" or "fp8".
        out: file to write; by default MODEL.PRECISION.onnx.
        target: what the file is for: "tensorrt" (GPUs), "cpu" (every processor), or "cpu-vnni" (processors with VNNI or
            ARM's dot product).
        images: folder of images; int8 and fp8 are calibrated on some of them and verified on others.
        annotations: COCO file; only the images that it lists are calibrated on.
        calibration_count: how many images to calibrate on, at most.
        calibration: file of ranges to reuse, or to write; by default MODEL.calibration.json, replaced where its ranges
            belong to another graph or other images.
        method: how a range is chosen from the measured numbers: "max" (covers all), "mse" (least error), "percentile".
        max_ap_loss: points of AP (of 100) that may be lost; blocks of the network stay in float until that is met.
        val_annotations: COCO file to measure AP on; by default `annotations`.
        val_images: folder of its images; by default `images`.
        max_pixels: larger images are left out.
        show_progress: whether to show progress bars on stderr.

    Returns:
        The new file; where it failed its verification, its path is NAME.failed.onnx.

    Raises:
        UserError: the file isn't a float32 file of this toolkit, images are missing, the calibration belongs to another
            graph, the loss can't be met, `out` can't be written.

    Examples:
        >>> print(quantize("mine.onnx", "int8", target="cpu", images="photos").table)

    """
    scheme = Scheme(precision, target, method)
    path = arguments.converted_path(Path(model), out, scheme)
    reads = model, images, annotations, val_annotations, val_images
    arguments.check_conversion_outputs(reads, path, scheme, calibration)
    advice = "a conversion reads the file and measures ranges with them: pip install {name}"
    require_libraries(("onnx", "onnxruntime"), advice)
    from .quantization.calibrate import calibration_images
    from .quantization.convert import load_float32
    from .quantize_step import publish_conversion
    from .verification.images import other_images

    source, folder = load_float32(Path(model)), folder_name(images)
    calibrated_on = calibration_images(folder, folder_name(annotations), calibration_count, scheme)
    measured_on = val_annotations or annotations, val_images or images
    goal = arguments.accuracy_goal(scheme, max_ap_loss, *measured_on, max_pixels)
    compare_on = other_images(folder, calibrated_on, max_pixels=max_pixels)
    cache = optional_path(calibration)
    return publish_conversion(
        source, path, scheme, calibrated_on, cache, goal, compare_on, show_progress, max_pixels=max_pixels
    )


def build_engine(
    model: AnyPath,
    out: AnyPath | None = None,
    *,
    flavor: Literal["auto"] | Flavor = "auto",
    batch: tuple[int, int, int] | None = None,
    shapes: Sequence[str] | None = None,
    compute_capabilities: Sequence[str] = (),
    separate: bool = False,
    workspace_gib: float | None = None,
    optimization_level: int | None = None,
    timing_cache: AnyPath | None = None,
    hardware_compatibility: HardwareCompatibility = "none",
    version_compatible: bool = False,
    precision: Precision | None = None,
    canvas_hw: tuple[int, int] | None = None,
    images: AnyPath | None = None,
    calibrate_on: AnyPath | None = None,
    show_progress: bool = False,
) -> tuple[BuiltEngine, ...]:
    """Build a TensorRT engine of an exported file, or of a checkpoint by way of its exported file.

    Writes OUT.engine and its description OUT.engine.json. The precision is that of the file's own types. An exported
    file needs onnx and TensorRT, no torch. A checkpoint is loaded once, exported and verified on the way; its ONNX
    files and calibration are written beside the engine.

    Args:
        model: exported file (.onnx) or checkpoint (.pt).
        out: engine to write; by default MODEL.engine, of a checkpoint CKPT.PRECISION.engine.
        flavor: "tensorrt" (built on the GPU that runs it), "rtx" (TensorRT for RTX, built anywhere), or "auto":
            tensorrt where there is a GPU and no compute capability is named.
        batch: least batch, batch to tune for, largest batch; by default the file's, tuned for the largest.
        shapes: an optimization profile each, "HxW" for one canvas or "HxW:HxW:HxW" for the least, the one to tune for
            and the largest; by default one profile for landscape and one for upright images.
        compute_capabilities: GPUs that an engine of TensorRT for RTX is for, such as ("8.6", "12.0"); by default the
            GPU here, or all where there is none.
        separate: one engine for each compute capability, OUT.sm86.engine, ….
        workspace_gib: most scratch memory of a layer in GiB; by default the device's.
        optimization_level: 0 to 5; a higher level searches longer. By default the library's.
        timing_cache: file that is read, if it exists, and written; it spares most of the next build's time (tensorrt).
        hardware_compatibility: which other GPUs may run the engine, at some cost in speed (tensorrt).
        version_compatible: whether later versions of TensorRT may run the engine, at some cost in speed (tensorrt).
        precision: of a checkpoint's engine; by default fp16.
        canvas_hw: fixes the canvas of a checkpoint's exported file, in px.
        images, calibrate_on: of a checkpoint, as in `export_onnx`.
        show_progress: whether to show progress bars on stderr.

    Returns:
        The engines: one, or with `separate` one for each compute capability.

    Raises:
        UserError: arguments contradict each other or the file, a library or GPU is missing, TensorRT can't build the
            file, or a checkpoint's exported file failed its verification.

    Examples:
        >>> (engine,) = build_engine("mine.onnx", flavor="rtx", compute_capabilities=("8.6", "12.0"))
        >>> engine.manifest.compute_capabilities
        ('8.6', '12.0')

    """
    path, capabilities = Path(model), tuple(dict.fromkeys(compute_capabilities))
    from_checkpoint = arguments.is_checkpoint(path)
    if not from_checkpoint:
        arguments.refuse_for_exported_file(path, precision, canvas_hw, images, calibrate_on)
    scratch = arguments.workspace_bytes(workspace_gib)
    arguments.check_separate(separate, capabilities)
    wanted = Scheme(precision or "fp16").precision
    default = path.with_suffix(f".{wanted}") if from_checkpoint else path.with_suffix("")
    outputs = engine_paths(default, optional_path(out), capabilities if separate else ())
    exported_as = path.with_suffix(".onnx").name if from_checkpoint else None
    reads, written = (model, images, calibrate_on), [engine for engine, _ in outputs]
    arguments.check_engine_outputs(reads, written, timing_cache, exported_as, Scheme(wanted))
    library = choose_library(flavor, capabilities)
    settings = Settings(
        profiles=(),
        compute_capabilities=capabilities,
        workspace_bytes=scratch,
        optimization_level=optimization_level,
        timing_cache=optional_path(timing_cache),
        hardware_compatibility=hardware_compatibility,
        version_compatible=version_compatible,
    )
    require_libraries(("onnx",), "an engine is built from a file that onnx reads: pip install {name}")
    from .trt.engine import build_engine_file, load_source

    verification = None
    if from_checkpoint:
        check_settings(library, settings, wanted)
        advice = f"export the checkpoint where it was trained ({TO_ONNX}), and give the .onnx file here"
        require_libraries(("torch", "torchvision", "onnxscript", "onnxruntime"), advice)
        from .export_step import publish_export_for_engine

        exported = publish_export_for_engine(
            path,
            outputs[0][0].parent,
            wanted,
            batch=batch,
            shapes=shapes,
            canvas_hw=canvas_hw,
            images=folder_name(images),
            calibrate_on=folder_name(calibrate_on),
            show_progress=show_progress,
        )
        path, verification = exported.path, exported.verification
    source = load_source(path)
    settings = dataclasses.replace(settings, profiles=make_profiles(source.manifest, batch, shapes))
    engines = []
    for engine_path, own in outputs:
        gpus = own or capabilities or default_capabilities(library, source.manifest.precision)
        engine_settings = dataclasses.replace(settings, compute_capabilities=gpus)
        described = build_engine_file(library, source, engine_settings, engine_path, show_progress=show_progress)
        engines.append(BuiltEngine(engine_path, engine_path.stat().st_size, described, verification))
    return tuple(engines)


def verify(
    reference: AnyPath,
    model: AnyPath,
    *,
    images: AnyPath | None = None,
    onnx_file: AnyPath | None = None,
    decode: Decode | None = None,
    annotations: AnyPath | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Verification:
    """Compare a deployed file with what it was made of: manifests, precision, dense maps, candidates, detections.

    Args:
        reference: checkpoint (.pt), or the float32 file of a conversion (.onnx; then no torch is needed).
        model: ONNX file, or engine of a checkpoint (.engine). An engine's numbers are compared only on a GPU that it
            fits; elsewhere its header, hashes and description are checked, and its ONNX file's numbers.
        images: folder of images to compare on; by default the checkpoint's validation images, or synthetic ones,
            which int8 and fp8 files don't accept.
        onnx_file: ONNX file that the engine was built from; by default looked for beside the engine.
        decode: also measure the AP with this decoder beside OpenCV's, on `images` by `annotations`. Where it loses at
            most 0.1 points, that is noted beside the model, and the runtime accepts the decoder for it.
        annotations: COCO file of `images`, for `decode`.
        max_pixels: larger images are not read.

    Returns:
        The checks with their limits. A file that differs too much is no error: see `passed` and `table`.

    Raises:
        UserError: a file can't be read, was altered, or was made of something else; images are missing.

    Examples:
        >>> verify("runs/mine/best.pt", "mine.onnx").passed
        True

    """
    require_libraries(("onnx", "onnxruntime"), "a verification runs the file with them: pip install {name}")
    path, folder = Path(model), folder_name(images)
    arguments.check_decode(decode, path, (annotations, folder), onnx_file)
    from .verify_step import verify_file

    found = verify_file(Path(reference), path, folder, optional_path(onnx_file), max_pixels)
    if decode is None or annotations is None or folder is None:
        return found
    from runtime.coco import load_coco

    from .verification.decoders import verify_decoder

    dataset = dataclasses.replace(load_coco(annotations, folder), max_pixels=max_pixels)
    return found + verify_decoder(path, decode, dataset)
