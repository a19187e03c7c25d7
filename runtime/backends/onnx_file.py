"""Checks of an ONNX file before a backend runs it: it exists, has a manifest, and keeps the graph's contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..command_names import TO_ONNX
from ..detections import RawOutputs
from ..files import as_utf8
from ..manifest import Manifest, from_json
from .contract import BackendError, require_toolkit_interface

EXPORT = f"export a checkpoint with: {TO_ONNX} CHECKPOINT"

# Name → (NumPy's name of the type, rank).
INPUTS = {"images": ("uint8", 4), "image_sizes": ("int32", 2)}
OUTPUTS = {
    "num_detections": ("int32", 2),
    "detection_boxes": ("float32", 3),
    "detection_scores": ("float32", 2),
    "detection_classes": ("int32", 2),
    "nms_exact": ("int32", 2),
    "candidate_boxes": ("float32", 3),
    "candidate_scores": ("float32", 2),
    "candidate_classes": ("int32", 2),
}
OUTPUT_NAMES = [field.name for field in dataclasses.fields(RawOutputs)]
DETECTION_NAMES, CANDIDATE_NAMES = OUTPUT_NAMES[:5], OUTPUT_NAMES[5:]

Tensors = Mapping[str, tuple[str, int]]  # name → (type, rank)


def check_file(path: Path) -> None:
    """Raise BackendError unless `path` is a non-empty file."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BackendError(f"{path}: cannot read the model: {error.strerror or error}; check the path") from error
    if not path.is_file():
        raise BackendError(f"{path}: not a file; expected a deployed model (.onnx)")
    if size == 0:
        raise BackendError(f"{path}: the file is empty; {EXPORT}")


def manifest_from(text: str | None, path: Path) -> Manifest:
    """The manifest from the file's metadata.

    Raises BackendError where it is missing or another program's, ManifestError where it is invalid.
    """
    if text is None:
        raise BackendError(f"{path}: an ONNX file, but not one that this toolkit exported (no manifest); {EXPORT}")
    manifest = from_json(text, str(path))
    require_toolkit_interface(manifest, path)
    return manifest


def check_contract(path: Path, inputs: Tensors, outputs: Tensors) -> None:
    """Raise BackendError unless the inputs and outputs have the names, types and ranks of the graph's contract."""
    for what, expected, given in (("input", INPUTS, inputs), ("output", OUTPUTS, outputs)):
        for name, (kind, rank) in expected.items():
            if given.get(name) != (kind, rank):
                found = "missing" if name not in given else f"{given[name][0]} of rank {given[name][1]}"
                raise BackendError(f"{path}: {what} {name!r} is {found}, expected {kind} of rank {rank}; {EXPORT}")


def for_onnxruntime(path: Path) -> str | bytes:
    """What ONNX Runtime opens: the file's name, or its bytes where the name isn't UTF-8, which it doesn't take."""
    name = str(path)
    return name if as_utf8(name) == name else path.read_bytes()


def unreadable(path: Path, library: str, error: Exception) -> BackendError:
    """The error for a file that a library can't open."""
    return BackendError(
        f"{path}: {library} cannot open it ({first_line(error)}); if it is truncated or not an ONNX file, {EXPORT}"
    )


def first_line(error: Exception) -> str:
    """A library's message as one short line: the first line that isn't just a place in the library's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from ", "Check '", "FrontEnd API failed"))]
    return (telling or lines or [type(error).__name__])[0][:300]
