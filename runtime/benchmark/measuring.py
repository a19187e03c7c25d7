"""Statistics of repeated measurements: quantiles, spread, ratios of alternating runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distribution:
    """Statistics of `count` values, in the values' unit. Quantiles interpolate linearly, as NumPy's do."""

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
        """(most − least) / median. 0.1 means that the figure varied by a tenth between repetitions."""
        return (self.most - self.least) / self.p50 if self.p50 else 0.0


def distribution(values: Sequence[float]) -> Distribution:
    """Statistics of values. Raises ValueError where there are none."""
    if not len(values):
        raise ValueError("no value to take quantiles of")
    array = np.asarray(values, np.float64)
    quantiles = np.quantile(array, [0, 0.25, 0.5, 0.75, 0.9, 0.99, 1])
    least, p25, p50, p75, p90, p99, most = map(float, quantiles)
    return Distribution(len(array), float(array.mean()), least, p25, p50, p75, p90, p99, most)


def speed_ratios(base: Sequence[float], other: Sequence[float]) -> Distribution:
    """How many times as fast `other` is as `base`, from the seconds of alternating runs: one ratio per adjacent pair.

    What slows the machine for longer than a pair slows both, and drops out of their ratio.
    """
    if len(base) != len(other):
        raise ValueError(f"{len(base)} runs against {len(other)}: they did not alternate")
    return distribution([b / o for b, o in zip(base, other, strict=True)])
