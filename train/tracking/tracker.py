"""What a tracker is told of a run, and where the run is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

Setting = str | int | float | bool


class Place(NamedTuple):
    """The run that a tracker opens."""

    out: Path  # folder of the run
    first_step: int  # steps done before; above 0 the tracker goes on with the run that it has
    run_id: str  # the tracker's own id of that run; empty where it has none yet


class Facts(NamedTuple):
    """What is known of a run before its first step."""

    settings: Mapping[str, Setting]  # by name, "schedule.batch" and the like
    machine: Mapping[str, Setting]  # hardware and versions
    files: Mapping[str, str]  # paths of the run's checkpoints and log, by their names


class Tracker(Protocol):
    """A library that keeps the numbers of runs. Whatever raises an Exception here, the training goes on."""

    @property
    def run_id(self) -> str:
        """The tracker's own id of the run, which resumes it later; empty where there is no such id."""
        ...

    @property
    def note(self) -> str:
        """A line for the user: where the run is, and how to look at it; empty: nothing."""
        ...

    def start(self, facts: Facts) -> None:
        """Keep what is known before the first step."""
        ...

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers of kind "train", "val" or "stop" after `step` steps."""
        ...

    def close(self, finished: bool) -> None:
        """End the run; not `finished`: by an error or a signal."""
        ...
