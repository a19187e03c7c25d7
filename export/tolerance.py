"""How far a file of each precision may be from what it was made of. Set from measurements, not from wishes."""

from __future__ import annotations

from typing import NamedTuple

from runtime.manifest import Precision

from .compare import EXACT, Same


class Tolerance(NamedTuple):
    """Limits of one precision."""

    dense: float  # root mean square error of a kind of dense map, by the map's standard deviation
    same: Same  # what one and the same detection is
    score: float  # detections below are not compared: near the cut, tiny changes of score make and unmake them
    unmatched: float  # fraction of detections that may have no partner
    reason: str


RANGE_LIMIT = 0.15
# Seen, as dense error: trained EfficientNet-Lite0 and ResNet-18 detectors, and a ResNet-50 with random weights, whose
# values no training has made robust. The limits are about three times the largest.
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-3, EXACT, 0.0, 0.01, "sums in another order"),
    "fp16": Tolerance(0.015, Same(iou=0.9, shift=2.0, score=0.02), 0.1, 0.01, "11 bits of mantissa: 0.001-0.004 seen"),
    "bf16": Tolerance(0.12, Same(iou=0.7, shift=4.0, score=0.15), 0.3, 0.03, "8 bits of mantissa: 0.01-0.04 seen"),
    "int8": Tolerance(0.5, Same(iou=0.6, shift=4.0, score=0.25), 0.3, 0.10, "256 steps a tensor: 0.02-0.18 seen"),
    "fp8": Tolerance(0.9, Same(iou=0.5, shift=4.0, score=0.35), 0.3, 0.25, "4 bits of mantissa: 0.04-0.47 seen"),
}
