"""The log that a training run writes: a line of JSON for each step that is logged, and for each evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import UserError

LOG = "log.jsonl"  # the name of the log in the folder of a run
KINDS = ("train", "val", "stop")  # of a line: a training step, an evaluation, the end by early stopping


class LogError(UserError):
    """A log with a line that isn't one of a run's."""


def _is_entry(line: dict[str, Any]) -> bool:
    """Whether an object is a line of a log: its kind, the step, and floats (or whole numbers that a float can hold)."""
    values = [value for name, value in line.items() if name != "kind"]
    numbers = all(
        value is None or isinstance(value, float) or (type(value) is int and abs(value) < 10**18) for value in values
    )
    return line.get("kind") in KINDS and type(line.get("step")) is int and numbers


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log as dictionaries with "kind" (one of `KINDS`) and "step"; none where there is no file.

    A last line that an interruption cut short is left out. Raises LogError for any other line that can't be read.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and _is_entry(line):
            lines.append(line)
        elif number < len(texts):
            raise LogError(
                f"{path}, line {number}: {text[:40]!r} is not a line of a log, which is an object with kind and step; "
                "mend or delete that line"
            )
    return lines
