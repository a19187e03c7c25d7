"""Reads what LoadGen wrote: its summary and, in accuracy mode, its log of responses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..detections import Detections
from ..errors import UserError
from .sut import decode_response

SUMMARY, DETAIL, ACCURACY, TRACE = (
    "mlperf_log_summary.txt",
    "mlperf_log_detail.txt",
    "mlperf_log_accuracy.json",
    "mlperf_log_trace.json",
)

FAILED = f"failed_{SUMMARY}"  # what the summary is renamed to where a query failed


class LoadgenError(UserError):
    """LoadGen is missing, or left logs that don't say what they should."""


@dataclass(frozen=True)
class Summary:
    """Of a performance run, as LoadGen's summary has it."""

    is_valid: bool
    values: dict[str, str]  # by LoadGen's own names
    advice: tuple[str, ...]  # its recommendations and what it says of early stopping
    errors: tuple[str, ...]

    def number(self, name: str) -> float | None:
        """The value whose name begins so."""
        return next((float(value) for key, value in self.values.items() if key.startswith(name)), None)


def read_summary(folder: Path) -> Summary:
    """Raises LoadgenError where there is no verdict in it: the run was cut short, or the disk is full."""
    path = folder / SUMMARY
    lines = _read(path).splitlines()
    values: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and not line.lstrip().startswith("*"):
            values.setdefault(name.strip(), value.strip())
    verdict = values.get("Result is")
    if verdict not in ("VALID", "INVALID"):
        raise LoadgenError(f"{path}: LoadGen left no verdict there: the run was cut short, or the disk is full; repeat")
    errors = tuple(line.strip() for line in lines if re.search(r"\bERRORS?\b", line) and not line.startswith("No "))
    return Summary(verdict == "VALID", values, _advice(lines), errors)


def _advice(lines: Sequence[str]) -> tuple[str, ...]:
    """Bullets; LoadGen breaks long ones over lines that begin with a space."""
    found = list[str]()
    for line in lines:
        if line.startswith(" * "):
            found.append(line[3:].strip())
        elif found and line.startswith(" ") and not line.startswith("  "):
            found[-1] += f" {line.strip()}"
    return tuple(found)


def read_responses(folder: Path, count: int) -> list[Detections]:
    """The detections that LoadGen logged, by index of the sample. Raises LoadgenError unless all `count` are there.

    A sample that it asked for more than once counts with its first response.
    """
    path = folder / ACCURACY
    found: dict[int, Detections] = {}
    try:
        for entry in json.loads(_read(path)):
            if entry["qsl_idx"] not in found:
                found[entry["qsl_idx"]] = decode_response(bytes.fromhex(entry["data"]))
    except (ValueError, TypeError, KeyError) as error:
        raise LoadgenError(f"{path}: not a whole accuracy run's log ({error}); is the disk full? Repeat") from error
    missing = set(range(count)) - found.keys()
    if missing or len(found) != count:
        raise LoadgenError(
            f"{path}: responses for {len(found)} images, expected {count}, {sorted(missing)[:3]} … are missing; was "
            "the run cut short? Repeat it"
        )
    return [found[index] for index in range(count)]


def remove_logs(folder: Path) -> None:
    """So that nothing of an earlier run is taken for this one's."""
    for name in (SUMMARY, FAILED, DETAIL, ACCURACY, TRACE):
        (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise LoadgenError(f"{path}: cannot read LoadGen's log: {error.strerror or error}; repeat the run") from error
