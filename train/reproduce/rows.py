"""What each system reached over its seeds: the rows of the report's tables, and how two of them compare."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import NamedTuple

from .run import read_result
from .systems import Job, System

METRICS = ("AP", "AP50", "AP75")


class Row(NamedTuple):
    """The results of a system over its seeds; metrics in points of 100."""

    system: System
    seeds: tuple[int, ...]  # the seeds that succeeded
    metrics: dict[str, tuple[float, ...]]  # by name, of each seed that succeeded
    failures: dict[int, str]  # by seed, the reason
    missing: tuple[int, ...]  # seeds without a result

    @property
    def ap(self) -> tuple[float, ...]:
        """The AP of each seed that succeeded."""
        return self.metrics["AP"]


def rows_of(jobs: list[Job], out: Path) -> list[Row]:
    """One row for each system, in the order of the systems' first jobs; `out` is the folder of the run."""
    by_system: dict[str, list[Job]] = {}
    for job in jobs:
        by_system.setdefault(job.system.key, []).append(job)
    rows = []
    for group in by_system.values():
        ended = {job.seed: read_result(out, job) for job in group}
        good = {seed: result for seed, result in ended.items() if result is not None and not result.error}
        rows.append(
            Row(
                group[0].system,
                tuple(good),
                {name: tuple(100 * result.metrics[name] for result in good.values()) for name in METRICS},
                {seed: result.error for seed, result in ended.items() if result is not None and result.error},
                tuple(seed for seed, result in ended.items() if result is None),
            )
        )
    return rows


def mean_and_spread(values: tuple[float, ...]) -> tuple[float, float]:
    """Mean and sample standard deviation; NaN for too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan


def separated(a: Row, b: Row) -> int:
    """1 if every seed of `a` is better than every seed of `b`, −1 for the reverse, 0 otherwise."""
    if not a.ap or not b.ap:
        return 0
    return (min(a.ap) > max(b.ap)) - (max(a.ap) < min(b.ap))


def k_rows(rows: list[Row]) -> list[Row]:
    """The rows of ATSS that differ in k alone, by rising k."""
    same = [row for row in rows if row.system.part == "k" or row.system.key == "atss-box"]
    return sorted(same, key=lambda row: row.system.assignment.k)
