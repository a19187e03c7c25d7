"""The box coder: boxes from the codes that the network regresses, and codes from boxes.

A code starts from an anchor (deltas) or from the anchor's centre (distances); `Regression` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.bounds import Bounds
from runtime.names import unknown_name

from .boxes import (
    MAX_LOG_DISTANCE,
    Sides,
    centers,
    decode_delta_pairs,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
)

RegressionStart = Literal["box", "point"]
Distance = Literal["exp", "relu"]
DistanceUnit = Literal["stride", "pixel"]
DeltaScale = Annotated[float, Bounds(1e-6, 1000)]
_SMALLEST = 1e-4  # units; smaller distances are encoded as this one, since their logarithm tends to −∞


@dataclass(frozen=True)
class Regression:
    """How a box is coded: as deltas of an anchor, or as the distances of its four sides from the anchor's centre."""

    start: RegressionStart = "box"  # "box": deltas of the anchor; "point": distances from its centre
    # "box": what dx, dy, dw, dh are divided by.
    delta_std: tuple[DeltaScale, DeltaScale, DeltaScale, DeltaScale] = (0.1, 0.1, 0.2, 0.2)
    distance: Distance = "exp"  # "point": the function that maps a regressed number to a distance
    distance_unit: DistanceUnit = "stride"  # "point": what a distance is measured in


def decode(anchors: Tensor, strides: Tensor | int, codes: Tensor, rule: Regression) -> Tensor:
    """Boxes [..., 4] xyxy px from codes [..., 4] of anchors [..., 4] on levels of strides [...] px."""
    if rule.start == "box":
        return decode_delta_pairs(anchors, codes, rule.delta_std)
    left, top, right, bottom = anchors.unbind(-1)
    x, y = (left + right) / 2, (top + bottom) / 2
    return torch.stack(decode_apart(x, y, right - left, bottom - top, strides, codes.unbind(-1), rule), dim=-1)


def decode_apart(
    x: Tensor,
    y: Tensor,
    width: Tensor,
    height: Tensor,
    strides: Tensor | int,
    codes: Sequence[Tensor],
    rule: Regression,
) -> Sides:
    """`decode` by coordinates [...]: anchors are given by centre and size, codes and boxes as four tensors.

    Raises UserError for an unknown start, distance or unit.
    """
    match rule.start:
        case "box":
            return decode_deltas(x, y, width, height, codes, rule.delta_std)
        case "point":
            unit = _unit(strides, rule)
            return decode_distances(x, y, [_distances(code, rule) * unit for code in codes])
        case _:
            unknown_name(rule.start, "regression.start", RegressionStart)


def encode(anchors: Tensor, strides: Tensor | int, boxes: Tensor, rule: Regression) -> Tensor:
    """The codes [..., 4] that `decode` turns into boxes [..., 4].

    A point outside its box has no code; its codes are clamped and finite.
    """
    match rule.start:
        case "box":
            return encode_deltas(anchors, boxes, rule.delta_std)
        case "point":
            unit = _unit(strides.unsqueeze(-1) if isinstance(strides, Tensor) else strides, rule)
            return _numbers(encode_distances(centers(anchors), boxes) / unit, rule)
        case _:
            unknown_name(rule.start, "regression.start", RegressionStart)


def _distances(numbers: Tensor, rule: Regression) -> Tensor:
    match rule.distance:
        case "exp":
            return numbers.clamp(max=MAX_LOG_DISTANCE).exp()
        case "relu":
            return F.relu(numbers)
        case _:
            unknown_name(rule.distance, "regression.distance", Distance)


def _numbers(distances: Tensor, rule: Regression) -> Tensor:
    """The inverse of `_distances`."""
    match rule.distance:
        case "exp":
            return distances.clamp(min=_SMALLEST).log()
        case "relu":
            return distances.clamp(min=0)
        case _:
            unknown_name(rule.distance, "regression.distance", Distance)


def _unit(strides: Tensor | int, rule: Regression) -> Tensor | int:
    match rule.distance_unit:
        case "pixel":
            return 1
        case "stride":
            return strides
        case _:
            unknown_name(rule.distance_unit, "regression.distance_unit", DistanceUnit)
