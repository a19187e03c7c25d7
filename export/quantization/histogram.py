"""Histogram of one value while a network is calibrated, and the range that each method chooses from it."""

from __future__ import annotations

import math

import numpy as np

from ..calibration import CalibrationError, Method

_BINS = 2048
_SAMPLE = 1 << 16  # numbers of a value that enter its histogram, per image; the extremes are taken of all
_PERCENTILE = 99.99
_STEPS = 255  # of the 8-bit range whose rounding error `mse` estimates


class Histogram:
    """The numbers of one value [B, C, …] over all images: a histogram of magnitudes, and the mean of each channel.

    The histogram has 2048 equal bins from 0, whose width doubles whenever a number exceeds the last bin.
    """

    def __init__(self) -> None:
        self._sums: np.ndarray | float = 0.0  # of each channel
        self._count = 0  # of each channel's numbers
        self.counts = np.zeros(_BINS)  # sampled numbers by magnitude
        self._top = 0.0  # the upper end of the last bin
        self._low, self._high = 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Count the numbers of one batch [B, C, …]. Raises CalibrationError where one is not finite."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite([low, high]).all():  # checked first: Python's min() and max() ignore NaN
            raise CalibrationError("the network's values are not finite on these images; is the checkpoint sound?")
        self._low, self._high = min(self._low, low), max(self._high, high)
        channels = values.reshape(*values.shape[:2], -1)
        self._sums = self._sums + channels.sum(axis=(0, 2), dtype=np.float64)
        self._count += channels.shape[0] * channels.shape[2]
        largest = max(-self._low, self._high)
        if largest == 0:
            return
        if self._top == 0:
            self._top = largest
        while self._top < largest:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(_BINS // 2)])
            self._top *= 2
        stride = max(1, flat.size // _SAMPLE)
        while math.gcd(stride, values.shape[-1]) > 1:  # otherwise the stride picks the same columns of every row
            stride += 1
        bins = (np.abs(flat[::stride]) * np.float32(_BINS / self._top)).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)

    def means(self) -> tuple[float, ...]:
        """The mean of each channel over all images and places; empty before the first batch."""
        return tuple((np.atleast_1d(self._sums) / self._count).tolist()) if self._count else ()

    def range(self, method: Method) -> tuple[float, float]:
        """The least and the largest number to represent; numbers outside are clipped.

        "max" covers all numbers, "percentile" 99.99 % of them, "mse" has the least expected squared error.
        """
        bound = {"max": self._largest, "mse": self._least_error, "percentile": self._percentile}[method]()
        return max(self._low, -bound), min(self._high, bound)

    def _largest(self) -> float:
        return max(-self._low, self._high)

    def _percentile(self) -> float:
        covered = np.cumsum(self.counts)
        last = int(np.searchsorted(covered, covered[-1] * _PERCENTILE / 100))
        return self._top * (last + 1) / _BINS if covered[-1] else 0.0

    def _least_error(self) -> float:
        """The bound at which rounding inside it plus clipping outside it has the least mean square error."""
        if not self.counts.any():
            return self._largest()
        width = self._top / _BINS
        centres = (np.arange(_BINS) + 0.5) * width
        spans = 2 if self._low < 0 else 1  # both signs share the numbers of 8 bits
        best, least = self._largest(), np.inf
        for last in range(_BINS // 16, _BINS + 1, _BINS // 128):
            bound = last * width
            inside = self.counts[:last].sum() * (spans * bound / _STEPS) ** 2 / 12
            outside = (self.counts[last:] * (centres[last:] - bound) ** 2).sum()
            if inside + outside < least:
                best, least = bound, inside + outside
        return min(best, self._largest())
