"""Seconds per stage of detecting on a batch, and the one list of the stages' names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

# In the order in which a batch passes through them. A backend measures the three in the middle; one that doesn't copy
# measures "infer" alone.
Stage = Literal["decode", "preprocess", "copy_in", "infer", "copy_out", "postprocess"]
STAGES: tuple[Stage, ...] = get_args(Stage)
# "network" is the backend's call as a whole, seen from outside: it contains the three stages in the middle.
Span = Literal[Stage, "network"]


class Stopwatch:
    """Adds up seconds by stage. Each call has its own stopwatch: it isn't made for several threads at once."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[Span, float] = {}  # stages that never ran are absent

    @contextmanager
    def measure(self, span: Span) -> Iterator[None]:
        """Add the block's duration to a stage. A block that raises adds nothing."""
        started = self._clock()
        yield
        self.add(span, self._clock() - started)

    def add(self, span: Span, seconds: float) -> None:
        """Add seconds that were measured elsewhere, such as between two CUDA events."""
        self.seconds[span] = self.seconds.get(span, 0.0) + seconds

    def merge(self, other: Stopwatch) -> None:
        """Add everything that another stopwatch measured."""
        for span, seconds in other.seconds.items():
            self.add(span, seconds)
