"""The calibration file: the ranges that were measured, and the graph and images they belong to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from runtime.bounds import Bounds, Count, Name, Sha256
from runtime.errors import UserError
from runtime.json_file import JsonError, parse_json
from runtime.manifest import Manifest
from runtime.records import RecordError, record_from_dict

CALIBRATION_VERSION = 2
FLOAT32_MAX = 3.4028235e38
Method = Literal["max", "mse", "percentile"]  # how a range is chosen from a histogram; see `quantization/histogram.py`
METHODS: tuple[Method, ...] = get_args(Method)
Value = Annotated[float, Bounds(-FLOAT32_MAX, FLOAT32_MAX)]


class CalibrationError(UserError):
    """Images or a calibration file that can't be used."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration measured, as it is kept in its file."""

    graph_sha256: Sha256  # of the float32 graph
    images_sha256: Sha256  # of the images' names and sizes, in order
    images: Count  # how many could be read
    skipped: tuple[str, ...]  # one line for each image that could not be read
    ranges: dict[Name, dict[Name, tuple[Value, Value]]]  # method → value → its least and largest number
    means: dict[Name, tuple[Value, ...]]  # value → the mean of each channel
    version: Annotated[int, Bounds(CALIBRATION_VERSION, CALIBRATION_VERSION)] = CALIBRATION_VERSION

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        for method in METHODS:
            for name, (low, high) in self.ranges.get(method, {}).items():
                if not low <= high:
                    yield "ranges", f"rising ranges, but that of {name} is {low} to {high}"


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file. Raises CalibrationError where it is damaged or of another version."""
    again = "delete it to calibrate again"
    try:
        fields = parse_json(path.read_bytes(), f"{path}: not a calibration file: it")
    except JsonError as error:
        raise CalibrationError(f"{error}; {again}") from error
    if not isinstance(fields, dict) or fields.get("version") != CALIBRATION_VERSION:
        raise CalibrationError(f"{path}: not a calibration file of version {CALIBRATION_VERSION}; {again}")
    try:
        return record_from_dict(Calibration, fields, str(path))
    except RecordError as error:
        raise CalibrationError(f"{error}; {again}") from error


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
