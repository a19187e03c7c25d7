"""Reads LoadGen's logs: the summary and, in accuracy mode, the responses."""

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

FAILED = f"failed_{SUMMARY}"  # new name of the summary if a query failed
LOGS = (SUMMARY, DETAIL, ACCURACY, TRACE, FAILED)


class LoadgenError(UserError):
    """LoadGen is not installed, or its logs are incomplete."""


@dataclass(frozen=True)
class Summary:
    """LoadGen's summary of a performance run."""

    is_valid: bool
    values: dict[str, str]  # by LoadGen's own names
    advice: tuple[str, ...]  # recommendations and remarks on early stopping
    errors: tuple[str, ...]

    def number(self, name: str) -> float | None:
        """The first value whose name begins with `name`, or None."""
        return next((float(value) for key, value in self.values.items() if key.startswith(name)), None)


def read_summary(folder: Path) -> Summary:
    """The summary in a folder of logs. Raises LoadgenError if it has no verdict: a run cut short, or a full disk."""
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
    """The summary's bullets; LoadGen continues a long one on lines that begin with a space."""
    found = list[str]()
    for line in lines:
        if line.startswith(" * "):
            found.append(line[3:].strip())
        elif found and line.startswith(" ") and not line.startswith("  "):
            found[-1] += f" {line.strip()}"
    return tuple(found)


def read_responses(folder: Path, count: int) -> list[Detections]:
    """The logged detections of `count` samples, by index. Raises LoadgenError if responses are missing.

    If LoadGen asked for a sample several times, its first response counts.
    """
    path = folder / ACCURACY
    found: dict[int, Detections] = {}
    try:
        for entry in json.loads(_read(path)):
            if entry["qsl_idx"] not in found:
                found[entry["qsl_idx"]] = decode_response(bytes.fromhex(entry["data"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoadgenError(f"{path}: not a whole accuracy run's log ({error}); is the disk full? Repeat") from error
    missing = set(range(count)) - found.keys()
    if missing or len(found) != count:
        raise LoadgenError(
            f"{path}: responses for {len(found)} images, expected {count}, {sorted(missing)[:3]} … are missing; was "
            "the run cut short? Repeat it"
        )
    return [found[index] for index in range(count)]


def remove_logs(folder: Path) -> None:
    """Remove the logs of an earlier run, so that they are not taken for those of the next."""
    for name in LOGS:
        (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise LoadgenError(f"{path}: cannot read LoadGen's log: {error.strerror or error}; repeat the run") from error
