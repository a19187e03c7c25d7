"""Figures of repeated measurements: quantiles, spread, ratios of alternating runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distribution:
    """Of `count` values, in their unit. Quantiles lie linearly between neighbours, as NumPy's."""

    count: int
    mean: float
    least: float
    p25: float
    p50: float
    p75: float
    p90: float
    p99: float
    most: float

    @property
    def spread(self) -> float:
        """(most − least) / median: 0.1 says that repeating it moved the figure by a tenth."""
        return (self.most - self.least) / self.p50 if self.p50 else 0.0


def distribution(values: Sequence[float]) -> Distribution:
    """Raises ValueError where there is no value."""
    if not len(values):
        raise ValueError("no value to take quantiles of")
    array = np.asarray(values, np.float64)
    quantiles = np.quantile(array, [0, 0.25, 0.5, 0.75, 0.9, 0.99, 1])
    least, p25, p50, p75, p90, p99, most = map(float, quantiles)
    return Distribution(len(array), float(array.mean()), least, p25, p50, p75, p90, p99, most)


def speed_ratios(base: Sequence[float], other: Sequence[float]) -> Distribution:
    """How many times as fast `other` is as `base`, by seconds of runs that alternated: a ratio per neighbouring pair.

    What slows the machine for longer than a pair slows both, and drops out of their ratio.
    """
    if len(base) != len(other):
        raise ValueError(f"{len(base)} runs against {len(other)}: they did not alternate")
    return distribution([b / o for b, o in zip(base, other, strict=True)])
