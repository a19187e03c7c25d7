"""How far a file of each precision may be from what it was made of. Set from measurements, not from wishes."""

from __future__ import annotations

from typing import NamedTuple

from runtime.manifest import Precision

from .matching import EXACT, MatchTolerance


class Tolerance(NamedTuple):
    """Limits of one precision."""

    dense: float  # root mean square error of a kind of dense map, by the map's standard deviation
    same: MatchTolerance  # what one and the same detection is
    score: float  # detections below are not compared: near the cut, tiny changes of score make and unmake them
    unmatched: float  # fraction of detections that may have no partner
    reason: str


# Measured with `benchmarks/gate_limits.py` on three trained detectors (`atss_tiny` and `atss_quick` on `shapes`,
# `atss_lite0` on BCCD), sixteen times three images of each data set, and for half precision the synthetic ones.
# `reason` has the largest figures, dense and unmatched; the limits are 1.5 times the former and twice the latter (of
# int8 the largest of its layouts), which are shares of some hundred detections. Where objects touch, NMS keeps one or
# another of two boxes by the smallest change of score: hence an IoU that is no higher. What is structural (other
# weights, other wiring) `export.verification.equivalence` refuses exactly.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, EXACT, 0.0, 0.01, "sums in another order"),
    "fp16": Tolerance(0.038, MatchTolerance(0.9, 2.0, 0.02), 0.1, 0.063, "11 bits of mantissa: 0.025 and 0.031"),
    "bf16": Tolerance(0.24, MatchTolerance(0.6, 2.0, 0.1), 0.3, 0.042, "8 bits of mantissa: 0.159 and 0.021"),
    "int8 tensorrt": Tolerance(
        0.275, MatchTolerance(0.6, 2.0, 0.15), 0.3, 0.052, "255 steps, symmetric: 0.183 and 0.020"
    ),
    "int8 cpu": Tolerance(
        0.44, MatchTolerance(0.6, 2.0, 0.15), 0.3, 0.052, "256 steps, weights of 7 bits: 0.294 and 0.020"
    ),
    "int8 cpu-vnni": Tolerance(
        0.33, MatchTolerance(0.6, 2.0, 0.15), 0.3, 0.052, "256 steps, weights of 8: 0.222 and 0.026"
    ),
    "fp8": Tolerance(0.48, MatchTolerance(0.6, 2.0, 0.15), 0.3, 0.045, "4 bits of mantissa: 0.320 and 0.022"),
}
# Of a value in 8 bits, by its root mean square (export/ranges.py). The same files gave 0.091 at most, by any way of
# choosing ranges; at a quarter of its range a value has 0.07 to 0.6, half of them more than 0.17.
RANGE_LIMIT = 0.15


def tolerance_of(precision: Precision, target: str | None) -> Tolerance:
    """The limits of a file; `target` is what an int8 one was made for, and one that doesn't say gets the tightest."""
    return TOLERANCES[f"int8 {target or 'tensorrt'}" if precision == "int8" else precision]
