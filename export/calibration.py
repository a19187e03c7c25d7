"""The calibration file: the ranges that were measured, and the graph and images they belong to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from runtime.errors import UserError
from runtime.manifest import Manifest
from runtime.records import RecordError, record_from_dict

CALIBRATION_VERSION = 2
Method = Literal["max", "mse", "percentile"]  # how a range is chosen from a histogram; see `quantization/histogram.py`
METHODS: tuple[Method, ...] = get_args(Method)


class CalibrationError(UserError):
    """Images or a calibration file that can't be used."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration measured, as it is kept in its file."""

    graph_sha256: str  # of the float32 graph
    images_sha256: str  # of the images' names and sizes, in order
    images: int  # how many could be read
    skipped: tuple[str, ...]  # one line for each image that could not be read
    ranges: dict[str, dict[str, tuple[float, float]]]  # method → value → its least and largest number
    means: dict[str, tuple[float, ...]]  # value → the mean of each channel
    version: int = CALIBRATION_VERSION


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file. Raises CalibrationError where it is damaged or of another version."""
    again = "delete it to calibrate again"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}: not a calibration file ({error}); {again}") from error
    if not isinstance(fields, dict) or fields.get("version") != CALIBRATION_VERSION:
        raise CalibrationError(f"{path}: not a calibration file of version {CALIBRATION_VERSION}; {again}")
    try:
        found = record_from_dict(Calibration, fields, str(path))
    except RecordError as error:
        raise CalibrationError(f"{error}; {again}") from error
    for method in METHODS:
        for name, (low, high) in found.ranges.get(method, {}).items():
            if not low <= high:
                raise CalibrationError(f"{path}: the range of {name} is {low} to {high}; {again}")
    return found


def check_calibration(
    calibration: Calibration, manifest: Manifest, images: Sequence[Path] | None, source: Path | str
) -> None:
    """Raise CalibrationError for a calibration of another graph, or of other images than these (None: of any).

    `source` names the calibration in the message.
    """
    if problem := foreign(calibration, manifest, images):
        raise CalibrationError(f"{source}: {problem}; delete it to calibrate again")


def foreign(calibration: Calibration, manifest: Manifest, images: Sequence[Path] | None) -> str | None:
    """Why a calibration doesn't belong to this graph and these images (None: any images); None where it does."""
    if calibration.graph_sha256 != manifest.graph_sha256:
        return (
            f"made of another graph (SHA-256 {calibration.graph_sha256[:12]}…, this one has "
            f"{manifest.graph_sha256[:12]}…)"
        )
    if images is not None and calibration.images_sha256 != images_sha256(images):
        return f"made of other images than these {len(images)}"
    return None


def images_sha256(images: Sequence[Path]) -> str:
    """SHA-256 of the images' names and sizes in bytes, in order."""
    digest = hashlib.sha256()
    for path in images:
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"{path.name}\0{size}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
