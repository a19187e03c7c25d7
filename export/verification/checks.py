"""What a verification compares, and its result: checks against limits, and the table of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

# Quantities, as the table names them.
PRECISION = "precision: convolutions unlike the manifest"
MANIFEST = "manifest: fields unlike the reference's"
SAME_NETWORK = "network: places unlike the float32 file's"
SUMS = "sums: the largest of two 8-bit products"
RANGES = "ranges: error of the worst 8-bit value"
NETWORK = {
    "class_logits": "network: class logits",
    "box_regression": "network: box regression",
    "centerness": "network: centerness",
}
CANDIDATES = "postprocessing: candidates without a match"
ROWS = "NMS: rows unlike greedy, as flagged"
RERUN = "NMS: rows unlike greedy, rerun on the host"
KERNELS = "kernels: detections unlike exact sums'"
DETECTIONS = "whole: detections without a match"
DECODER = "decoding: points of AP lost to OpenCV's"

# Likely causes of a failed comparison of an 8-bit file.
SATURATES = "saturating kernels: convert again with --target cpu, which fits every processor"
UNFIT = "its range doesn't fit: calibrate on images like these"
UNTRAINED = "an untrained network? Its scores on these images are so similar that 8 bits reorder them"


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison. It passes when the worst difference is within its limit; NaN never passes."""

    case: str  # "file", or the batch that was compared: "batch × height × width"
    quantity: str
    compared: int  # numbers, rows, nodes or fields
    worst: float
    limit: float
    detail: str = ""  # where it differs, if that is known

    @property
    def passed(self) -> bool:
        """Whether the worst difference is within the limit."""
        return self.worst <= self.limit


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a verification found. Of ONNX files it has checks alone; of engines also statements, one line each."""

    checks: tuple[Check, ...] = ()
    confirmed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()  # what could not be checked on this machine

    @property
    def passed(self) -> bool:
        """Whether there is no problem and no difference beyond its limit."""
        return not self.problems and all(check.passed for check in self.checks)

    @property
    def table(self) -> str:
        """The findings as text: the statements, then a line for each check and one that sums them up."""
        lines = [f"ok           {line}" for line in self.confirmed]
        lines += [f"WRONG        {line}" for line in self.problems]
        lines += [f"not checked  {line}" for line in self.unchecked]
        if self.checks or not lines:
            lines += _check_lines(self.checks)
        return "\n".join(lines)

    def __add__(self, other: Verification) -> Verification:
        """The findings of both."""
        return Verification(
            self.checks + other.checks,
            self.confirmed + other.confirmed,
            self.problems + other.problems,
            self.unchecked + other.unchecked,
        )


def _check_lines(checks: Sequence[Check]) -> list[str]:
    lines = [f"{'batch × canvas':18}{'quantity':50}{'compared':>12}{'worst':>10}{'limit':>10}"]
    for check in checks:
        verdict = "" if check.passed else "  TOO LARGE"
        lines.append(
            f"{check.case:18}{check.quantity:50}{check.compared:>12,}{check.worst:>10.2g}{check.limit:>10.2g}{verdict}"
        )
        if check.detail and not check.passed:
            lines.append(f"{'':18}{check.detail}")
    failed = sum(not check.passed for check in checks)
    lines.append(f"{len(checks)} comparisons, {failed or 'none'} beyond the limit")
    if not any(check.compared for check in checks if check.quantity == DETECTIONS):
        lines.append("note: no detections on these images, so only what precedes them was compared; try --images DIR")
    return lines
