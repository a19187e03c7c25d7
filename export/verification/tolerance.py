"""How much a file of each precision may differ from what it was made of. The limits are set from measurements."""

from __future__ import annotations

from typing import NamedTuple

from runtime.manifest import Precision

from .matching import EXACT, MatchTolerance


class Tolerance(NamedTuple):
    """The limits of one precision."""

    dense: float  # root mean square error of a kind of dense map, by its standard deviation
    same: MatchTolerance  # when two detections are the same
    score: float  # detections below this score are not compared: near the threshold tiny changes of score decide
    unmatched: float  # fraction of detections that may have no match
    reason: str


# Measured with `benchmarks/gate_limits.py` on three trained detectors (`atss_tiny` and `atss_quick` on `shapes`,
# `atss_lite0` on BCCD), sixteen times three images of each data set, and for half precision the synthetic ones.
# `reason` has the largest measured figures, dense and unmatched. The limits are 1.5 times the dense figure and twice
# the unmatched one (for int8 the largest of its layouts), which are fractions of some hundred detections. Where objects
# touch, the smallest change of score decides which of two boxes NMS keeps, so the IoU can't be higher. Structural
# differences (other weights, other wiring) are refused exactly by `equivalence.py`.
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
# Error of a value in 8 bits, divided by its root mean square (`ranges.py`). The same files gave 0.091 at most, with any
# method of choosing ranges. With a quarter of the range the errors are 0.07 to 0.6, half of them above 0.17.
RANGE_LIMIT = 0.15


def tolerance_of(precision: Precision, target: str | None) -> Tolerance:
    """The limits of a file. An int8 file without a `target` gets the limits of TensorRT's, which are the tightest."""
    return TOLERANCES[f"int8 {target or 'tensorrt'}" if precision == "int8" else precision]
