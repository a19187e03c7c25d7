"""Boxes from what the network regresses, and back, as a configuration has it: from an anchor or from its centre."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import config
from .boxes import (
    MAX_LOG_DISTANCE,
    centers,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
)

_SMALLEST = 1e-4  # units; a distance below it has no logarithm worth learning


def decode(anchors: Tensor, strides: Tensor | int, codes: Tensor, rule: config.Regression) -> Tensor:
    """Boxes [..., 4] xyxy px that codes [..., 4] make of anchors [..., 4] on levels of strides [...] px."""
    if rule.start == "box":
        return decode_deltas(anchors, codes, rule.delta_std)
    distances = codes.clamp(max=MAX_LOG_DISTANCE).exp() if rule.distance == "exp" else F.relu(codes)
    return decode_distances(centers(anchors), distances * _unit(strides, rule))


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
