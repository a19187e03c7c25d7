"""What a verification compares, with what limit, and the table that it prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

PRECISION = "precision: convolutions not as the manifest says"
MANIFEST = "manifest: fields unlike those it was made of"
SAME_NETWORK = "network: places unlike the float32 file's"
SUMS = "sums: the largest of two 8-bit products"
RANGES = "ranges: error of the worst 8-bit value"
NETWORK = {
    "class_logits": "network: class logits",
    "box_regression": "network: box regression",
    "centerness": "network: centerness",
}
CANDIDATES = "postprocessing: candidates without partner"
ROWS = "NMS: rows unlike greedy, as flagged"
RERUN = "NMS: rows unlike greedy, rerun on the host"
KERNELS = "kernels: detections unlike exact sums'"
DETECTIONS = "whole: detections without partner"

# What a failed comparison of an 8-bit file points to.
SATURATES = "saturating kernels: make it anew with --target cpu, which fits every processor"
UNFIT = "ranges that don't fit: calibrate on images like these"
UNTRAINED = "an untrained network? Its scores on these images are so much alike that 8 bits reorder them"


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison: passed when the worst difference is within its limit."""

    case: str
    quantity: str
    compared: int
    worst: float
    limit: float
    detail: str = ""  # where it differs, if that is known

    @property
    def passed(self) -> bool:
        return self.worst <= self.limit  # False for NaN


def print_report(checks: Sequence[Check]) -> None:
    """A table of the differences, and one line that sums them up."""
    print(f"{'batch × canvas':18}{'quantity':50}{'compared':>12}{'worst':>10}{'limit':>10}")
    for check in checks:
        verdict = "" if check.passed else "  TOO LARGE"
        print(
            f"{check.case:18}{check.quantity:50}{check.compared:>12,}{check.worst:>10.2g}{check.limit:>10.2g}{verdict}"
        )
        if check.detail and not check.passed:
            print(f"{'':18}{check.detail}")
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks)} comparisons, {failed or 'none'} beyond the limit")
    if not any(check.compared for check in checks if check.quantity == DETECTIONS):
        print("note: no detections on these images, so only what precedes them was compared; try --images DIR")
