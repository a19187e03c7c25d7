"""Checks and defaults of the arguments of `export.api`, made before anything is loaded."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path

from runtime.backends.engine_file import json_path
from runtime.coco import load_coco
from runtime.command_names import CHECKPOINT_SUFFIXES, QUANTIZE, TO_DEEPSTREAM
from runtime.decoders import note_path
from runtime.errors import UserError
from runtime.images import MAX_PIXELS
from runtime.manifest import Interface
from runtime.outputs import check_outputs

from .quantization.goal import AccuracyGoal
from .quantization.scheme import Scheme
from .verification.publish import failed_path

AnyPath = str | PathLike[str]
BATCH_MAX = 16  # largest batch of an exported file, unless another one is asked for


class ArgumentError(UserError):
    """Arguments that contradict each other or the file."""


class MissingLibraryError(UserError):
    """A library that a function needs and that is not installed."""


def require_libraries(names: Sequence[str], advice: str) -> None:
    """Raise MissingLibraryError where one of these modules can't be found; `{name}` in `advice` is that module."""
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            raise MissingLibraryError(f"{missing} is not installed; {advice.format(name=missing)}") from error


def optional_path(path: AnyPath | None) -> Path | None:
    """The path as such, where there is one."""
    return None if path is None else Path(path)


def folder_name(folder: AnyPath | None) -> str | None:
    """A folder as messages name it: as it was given."""
    return None if folder is None else fspath(folder)


def exported_path(checkpoint: Path, out: AnyPath | None) -> Path:
    """Where a checkpoint is exported to, by default beside it. Raises ArgumentError for a name that can't be meant."""
    path = Path(out) if out is not None else checkpoint.with_suffix(".onnx")
    if path.suffix != ".onnx":
        raise ArgumentError(f"-o {path}: expected a name that ends in .onnx, by which every runtime knows the format")
    if path.resolve() == checkpoint.resolve():
        raise ArgumentError(f"{path} is the checkpoint itself: name another file with -o")
    if path.is_dir():
        raise ArgumentError(f"-o {path}: that is a folder; give the file's name as well")
    return path


def converted_path(source: Path, out: AnyPath | None, scheme: Scheme) -> Path:
    """Where a conversion is written, by default SOURCE.PRECISION.onnx. Raises ArgumentError."""
    path = Path(out) if out is not None else source.with_suffix(f".{scheme.precision}.onnx")
    if path.suffix != ".onnx" or path.is_dir() or path.resolve() == source.resolve():
        raise ArgumentError(f"-o {path}: expected another file than the model, with a name that ends in .onnx")
    return path


def default_calibration(model: Path) -> Path:
    """Where the ranges of a float32 file are kept: MODEL.calibration.json."""
    return model.with_name(f"{model.stem}.calibration.json")


def _exported_files(out: Path, scheme: Scheme) -> list[Path]:
    """All files that an export to `out` may write: it is converted where the scheme isn't float32."""
    published = [out] if scheme.precision == "fp32" else [out, out.with_suffix(f".{scheme.precision}.onnx")]
    ranges = [default_calibration(out)] if scheme.is_quantized else []
    return [*published, *map(failed_path, published), *ranges]


def check_conversion_outputs(
    reads: Sequence[AnyPath | None], out: Path, scheme: Scheme, calibration: AnyPath | None
) -> None:
    """Raise OutputError where a conversion of the first of `reads` to `out` would replace an input, or write twice."""
    ranges = (calibration or default_calibration(Path(reads[0] or ""))) if scheme.is_quantized else None
    check_outputs(reads, {"-o": [out, failed_path(out)], "--calibration": ranges})


def check_engine_outputs(
    reads: Sequence[AnyPath | None],
    engines: Sequence[Path],
    timing_cache: AnyPath | None,
    exported: str | None,
    scheme: Scheme,
) -> None:
    """Raise OutputError where a build of engines would replace what it reads, or write one file twice.

    `exported` is the name of the ONNX file that is written beside the engine on the way from a checkpoint.
    """
    on_the_way = [] if exported is None else _exported_files(engines[0].with_name(exported), scheme)
    outputs: dict[str, AnyPath | Sequence[AnyPath] | None] = {
        "-o": [file for engine in engines for file in (engine, json_path(engine))],
        "--timing-cache": timing_cache,
        "beside the engine,": on_the_way,
    }
    check_outputs(reads, outputs)


def check_decode(
    decode: str | None, model: Path, data: tuple[AnyPath | None, AnyPath | None], onnx_file: AnyPath | None
) -> None:
    """Check a measurement of a decoder on `data`, annotations and images; nothing is checked without a decoder.

    Raises ArgumentError where `data` lacks one, OutputError where the note beside the model would replace an input.
    """
    if decode is None:
        return
    if None in data:
        raise ArgumentError(f"--decode {decode} is measured on annotated images: give --annotations JSON --images DIR")
    check_outputs((*data, onnx_file), {"--decode": note_path(model)})


def check_export(reads: Sequence[AnyPath | None], out: Path, scheme: Scheme, interface: Interface) -> None:
    """Check an export to `out` that reads these files and folders.

    Raises ArgumentError where an interface isn't exported in the scheme's precision, OutputError where an input would
    be replaced.
    """
    check_outputs(reads, {"-o": _exported_files(out, scheme)})
    if interface != "toolkit" and scheme.precision != "fp32":
        raise ArgumentError(
            f"--interface {interface} --precision {scheme.precision}: make the file in that precision first, and then "
            f"{TO_DEEPSTREAM} MODEL.{scheme.precision}.onnx"
        )


def accuracy_goal(
    scheme: Scheme,
    max_ap_loss: float | None,
    annotations: AnyPath | None,
    images: AnyPath | None,
    max_pixels: int = MAX_PIXELS,
) -> AccuracyGoal | None:
    """The loss of AP to keep to, with its data set; None where no loss is named. Raises UserError."""
    if max_ap_loss is None:
        return None
    if not scheme.is_quantized or max_ap_loss < 0:
        raise ArgumentError(
            f"--max-ap-loss {max_ap_loss} with --precision {scheme.precision}: expected points of AP, 0 or more, and "
            "int8 or fp8"
        )
    if annotations is None or images is None:
        raise ArgumentError("--max-ap-loss is measured on annotated images: give --val-annotations JSON")
    return AccuracyGoal(max_ap_loss, replace(load_coco(annotations, images), max_pixels=max_pixels))


def is_checkpoint(model: Path) -> bool:
    """Whether an engine's source is a checkpoint and not an exported file. Raises ArgumentError for another file."""
    if model.suffix not in (".onnx", *CHECKPOINT_SUFFIXES):
        raise ArgumentError(f"{model}: expected an exported file (.onnx) or a checkpoint (.pt)")
    return model.suffix != ".onnx"


def check_separate(separate: bool, compute_capabilities: Sequence[str]) -> None:
    """Raise ArgumentError where an engine for each compute capability is asked for and none is named."""
    if separate and not compute_capabilities:
        raise ArgumentError("--separate requires --compute-capability, for example 8.6 8.9 12.0")


def refuse_for_exported_file(
    model: Path, precision: object, canvas_hw: object, images: object, calibrate_on: object
) -> None:
    """Raise ArgumentError where one of these options, which only a checkpoint takes, is given (not None)."""
    options = {"--precision": precision, "--canvas": canvas_hw, "--images": images, "--calibrate-on": calibrate_on}
    if given := [option for option, value in options.items() if value is not None]:
        raise ArgumentError(
            f"{', '.join(given)}: {model.name} was exported already, with its precision and canvas; leave that out, "
            "or give the checkpoint (.pt); another precision of this file: " + QUANTIZE
        )


def workspace_bytes(gib: float | None) -> int | None:
    """GiB in bytes. Raises ArgumentError for a number that is not above 0."""
    if gib is None:
        return None
    if not 0 < gib < math.inf:
        raise ArgumentError(f"--workspace {gib:g}: expected GiB, more than 0")
    return int(gib * (1 << 30))
