"""Checks of an ONNX file before a backend runs it: it exists, has a manifest, and keeps the graph's contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..command_names import TO_ONNX
from ..detections import RawOutputs
from ..files import as_utf8
from ..manifest import Manifest, ManifestError, from_json
from .contract import BackendError, require_toolkit_interface
from .onnx_bytes import read_facts

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

MOST_LEVELS = 8  # of a pyramid
Sizes = range | tuple[int, int]  # that an axis may have; of a pair, one size alone where the graph has a fixed one
Shape = Sequence[int | None]  # None: the size depends on the images
Tensors = Mapping[str, tuple[str, Shape]]  # name → NumPy's name of the type, and the shape


def check_file(path: Path) -> None:
    """Raise BackendError unless `path` is a non-empty file whose graph is the one that its manifest was written for.

    Raises ManifestError where the manifest is invalid. What isn't an ONNX file of this toolkit passes: the library that
    opens it says so.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BackendError(f"{path}: cannot read the model: {error.strerror or error}; check the path") from error
    if not path.is_file():
        raise BackendError(f"{path}: not a file; expected a deployed model (.onnx)")
    if size == 0:
        raise BackendError(f"{path}: the file is empty; {EXPORT}")
    try:
        facts = read_facts(path)
    except OSError as error:
        raise BackendError(f"{path}: cannot read the model: {error.strerror or error}; check the path") from error
    if facts is None or facts.manifest is None:
        return
    manifest = from_json(facts.manifest, str(path))
    if facts.graph_sha256 != manifest.graph_sha256:
        raise BackendError(
            f"{path}: the graph was changed after its export (its SHA-256 is not the manifest's): the file is damaged, "
            f"or a program altered it; copy it again, or {EXPORT}"
        )
    if facts.classes not in (None, len(manifest.classes)):
        raise ManifestError(
            f"{path}: the graph has {facts.classes} classes, the manifest's classes are {len(manifest.classes)}; "
            f"{EXPORT}"
        )


def manifest_from(text: str | None, path: Path) -> Manifest:
    """The manifest from the file's metadata.

    Raises BackendError where it is missing or another program's, ManifestError where it is invalid.
    """
    if text is None:
        raise BackendError(f"{path}: an ONNX file, but not one that this toolkit exported (no manifest); {EXPORT}")
    manifest = from_json(text, str(path))
    require_toolkit_interface(manifest, path)
    return manifest


def check_contract(path: Path, inputs: Tensors, outputs: Tensors, manifest: Manifest) -> None:
    """Raise BackendError unless the inputs and outputs have the names, types and ranks of the graph's contract.

    Raises ManifestError where their sizes aren't the manifest's.
    """
    for what, expected, given in (("input", INPUTS, inputs), ("output", OUTPUTS, outputs)):
        for name, (kind, rank) in expected.items():
            if name not in given or (given[name][0], len(given[name][1])) != (kind, rank):
                found = "missing" if name not in given else f"{given[name][0]} of rank {len(given[name][1])}"
                raise BackendError(f"{path}: {what} {name!r} is {found}, expected {kind} of rank {rank}; {EXPORT}")
    shapes = {name: shape for tensors in (inputs, outputs) for name, (_, shape) in tensors.items()}
    if problem := difference_of_shapes(shapes, manifest):
        raise ManifestError(f"{path}: {problem}; {EXPORT}")


def difference_of_shapes(shapes: Mapping[str, Shape], manifest: Manifest) -> str | None:
    """The first shape of the contract's tensors that doesn't fit the manifest, as a clause; None where all fit.

    A size that depends on the images fits.
    """
    batch, height, width = manifest.inputs.ranges.values()
    rows = range(1, manifest.thresholds.detections + 1)
    candidates = range(1, MOST_LEVELS * manifest.thresholds.candidates_per_level + 1)
    expected: dict[str, tuple[Sizes, ...]] = {
        "images": (batch, height, width, (3, 3)),
        "image_sizes": (batch, (2, 2)),
        "num_detections": (batch, (1, 1)),
        "detection_boxes": (batch, rows, (4, 4)),
        "detection_scores": (batch, rows),
        "detection_classes": (batch, rows),
        "nms_exact": (batch, (1, 1)),
        "candidate_boxes": (batch, candidates, (4, 4)),
        "candidate_scores": (batch, candidates),
        "candidate_classes": (batch, candidates),
    }
    for name, axes in expected.items():
        for axis, (size, sizes) in enumerate(zip(shapes[name], axes, strict=True)):
            low, high = (sizes[0], sizes[-1])
            if size is not None and not (size in sizes if isinstance(sizes, range) else low == size == high):
                said = f"{high}" if low == high else f"{low} to {high}"
                return f"axis {axis} of {name!r} has {size} in the graph, but {said} by the manifest"
    for kind in ("detection", "candidate"):
        counts = {name: shapes[f"{kind}_{name}"][1] for name in ("boxes", "scores", "classes")}
        if len(set(counts.values())) > 1:
            return f"the graph has {kind}s in different numbers: {counts}"
    return None


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
