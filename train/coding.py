"""Boxes from what the network regresses, and back, as a configuration has it: from an anchor or from its centre."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import config
from .boxes import (
    MAX_LOG_DISTANCE,
    Sides,
    centers,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
)

_SMALLEST = 1e-4  # units; a distance below it has no logarithm worth learning


def decode(anchors: Tensor, strides: Tensor | int, codes: Tensor, rule: config.Regression) -> Tensor:
    """Boxes [..., 4] xyxy px that codes [..., 4] make of anchors [..., 4] on levels of strides [...] px."""
    left, top, right, bottom = anchors.unbind(-1)
    x, y = (left + right) / 2, (top + bottom) / 2
    return torch.stack(decode_apart(x, y, right - left, bottom - top, strides, codes, rule), dim=-1)


def decode_apart(
    x: Tensor,
    y: Tensor,
    width: Tensor,
    height: Tensor,
    strides: Tensor | int,
    codes: Tensor,
    rule: config.Regression,
) -> Sides:
    """`decode` with anchors given by centre and size, and boxes returned, by coordinates [...]."""
    if rule.start == "box":
        return decode_deltas(x, y, width, height, codes, rule.delta_std)
    distances = codes.clamp(max=MAX_LOG_DISTANCE).exp() if rule.distance == "exp" else F.relu(codes)
    return decode_distances(x, y, distances * _unit(strides, rule))


def encode(anchors: Tensor, strides: Tensor | int, boxes: Tensor, rule: config.Regression) -> Tensor:
    """The codes [..., 4] that `decode` makes boxes [..., 4] of; finite where there are none (a point outside)."""
    if rule.start == "box":
        return encode_deltas(anchors, boxes, rule.delta_std)
    distances = encode_distances(centers(anchors), boxes) / _unit(strides, rule)
    return distances.clamp(min=_SMALLEST).log() if rule.distance == "exp" else distances.clamp(min=0)


def _unit(strides: Tensor | int, rule: config.Regression) -> Tensor | int:
    if rule.distance_unit == "pixel":
        return 1
    return strides.unsqueeze(-1) if isinstance(strides, Tensor) else strides
