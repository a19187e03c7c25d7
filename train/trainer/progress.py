"""Progress of a run or another long job and the time left: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from tqdm import tqdm

EVERY_S = 30.0  # between two lines
UNTIMED = 3  # first steps: they allocate memory and choose kernels, and so tell nothing of later steps
MEASURED_S = 5.0  # of timed steps before the first line estimates the time left

Batch = TypeVar("Batch")


class Progress(Generic[Batch]):
    """Iterates over the batches of steps `first` … `last` − 1 (or of another `unit`) and shows the progress.

    The text in `note` is shown too. A step lasts until the next batch is asked for, evaluations and checkpoints
    included. `bar` chooses between a bar and lines; None takes the bar where stdout and stderr are a terminal. Without
    `shown` nothing is printed.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        first: int,
        last: int,
        shown: bool = True,
        unit: str = "step",
        bar: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self.batches, self.first, self.last, self.shown = batches, first, last, shown
        self.note, self.unit = "", unit
        self._with_bar = sys.stdout.isatty() and sys.stderr.isatty() if bar is None else bar
        self._clock, self._write = clock, write or say

    def __iter__(self) -> Iterator[Batch]:
        if not self.shown:
            yield from self.batches
        elif self._with_bar:
            yield from self._as_bar()
        else:
            yield from self._as_lines()

    def _as_bar(self) -> Iterator[Batch]:
        bar = tqdm(self.batches, initial=self.first, total=self.last, unit=self.unit)
        for batch in bar:
            yield batch
            bar.set_postfix_str(self.note, refresh=False)

    def _as_lines(self) -> Iterator[Batch]:
        began = written = self._clock()  # `began`: of the steps that are measured
        before, silent = self.first, True
        for done, batch in enumerate(self.batches, start=self.first + 1):
            yield batch
            now = self._clock()
            measured = done - before
            early = silent and before > self.first and now - began >= MEASURED_S
            if (early or now - written >= EVERY_S) and done < self.last:
                left = duration(seconds_left(now - began, measured, self.last - done))
                parts = (
                    f"{self.unit} {done} of {self.last} ({100 * done // self.last} %)",
                    self.note,
                    f"about {left} to go",
                )
                self._write("  ".join(part for part in parts if part))
                written, silent = now, False
            if done - self.first == UNTIMED:
                began, before = now, done


def seconds_left(seconds: float, steps: int, left: int) -> float:
    """An estimate of the seconds that `left` steps take, where `steps` steps took `seconds`."""
    return seconds / steps * left


def duration(seconds: float) -> str:
    """A duration as a text with the precision of an estimate: tens of seconds, minutes, or tenths of an hour."""
    if seconds < 55:
        return f"{10 * max(1, round(seconds / 10))} s"
    if seconds < 99.5 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    """Print a line, above the bar if there is one, and flush it."""
    tqdm.write(line)
    sys.stdout.flush()
