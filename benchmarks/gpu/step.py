"""What the steps of the GPU report share: their options, and the file that a step writes its figures into.

A step is a module with a `main`. It runs alone (`python -m benchmarks.gpu.NAME --json step.json`), goes on after a
failure, and writes its file again after each figure, so that a step that is stopped loses nothing.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.files import atomic_write

Row = dict[str, Any]  # a figure or several, and the conditions that they hold for; the keys are a table's columns


@dataclass
class Record:
    """The figures of a step: tables of rows, failures with their text, and what was not run and why.

    `minutes` is what the step may take; `has_time` says whether a part that needs `seconds` still fits. A row that the
    file already holds is kept: `has` finds it, so that a step that is started again goes on where it stopped. `cut`
    says that something didn't fit: the report starts such a step again.
    """

    path: Path
    minutes: float
    rehearsal: bool = False  # small sizes on whatever is here: that the step works, not how fast
    tables: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    cut: bool = False  # whether a part was left out because the time was short
    _started: float = field(default_factory=time.monotonic)

    def has_time(self, seconds: float = 0) -> bool:
        """Whether a part that takes `seconds` can still end in time."""
        fits = time.monotonic() - self._started + seconds < 60 * self.minutes
        self.cut |= not fits
        return fits

    @property
    def seconds_left(self) -> float:
        """The seconds until the step's time is up, at least 0."""
        return max(0.0, 60 * self.minutes - (time.monotonic() - self._started))

    def has(self, table: str, **conditions: Any) -> bool:
        """Whether the table has a row with these conditions."""
        return any(conditions.items() <= row.items() for row in self.tables.get(table, []))

    def row(self, table: str, **columns: Any) -> None:
        """Add a row to a table, print it and save."""
        self.tables.setdefault(table, []).append(columns)
        print(f"{table}: " + ", ".join(f"{name} {_short(value)}" for name, value in columns.items()), flush=True)
        self.save()

    def forget(self, table: str, **conditions: Any) -> None:
        """Remove the rows of a table that have these conditions, before they are measured again."""
        rows = [row for row in self.tables.get(table, []) if not conditions.items() <= row.items()]
        self.tables[table] = rows

    def fail(self, part: str, text: str) -> None:
        """Say that a part failed, and with what text."""
        self.failures[part] = text
        print(f"{part}: FAILED: {text}", flush=True)
        self.save()

    def skip(self, part: str, reason: str) -> None:
        """Say that a part was not run, and why."""
        self.not_run[part] = reason
        print(f"{part}: not run: {reason}", flush=True)
        self.save()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Record what is raised inside as the failure of this part, and go on after it."""
        self.failures.pop(name, None)
        self.not_run.pop(name, None)
        try:
            yield
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.fail(name, f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})")

    def save(self) -> None:
        """Write the file."""
        content = {"tables": self.tables, "failures": self.failures, "not_run": self.not_run, "cut": self.cut}
        atomic_write(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def begin(description: str | None, arguments: Sequence[str] | None = None) -> Record:
    """A step's record, by its options; rows of a file that exists are kept."""
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="write the figures to this file; its rows are kept")
    parser.add_argument("--minutes", type=float, default=5, help="start nothing that would end later")
    parser.add_argument(
        "--rehearse", action="store_true", help="small sizes on whatever device there is: shows that the step works"
    )
    options = parser.parse_args(arguments)
    record = Record(options.json, options.minutes, options.rehearse)
    if options.json.exists():
        known = json.loads(options.json.read_text(encoding="utf-8"))
        # What was not run before is decided again: there may be time for it now.
        record.tables, record.failures = known["tables"], known["failures"]
    record.save()
    return record


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
