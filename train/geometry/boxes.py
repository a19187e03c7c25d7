"""Boxes: xyxy, float32, pixels, continuous (width = x2 − x1). Every function broadcasts over leading dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, stack, where
from torch import max as elementwise_max
from torch import min as elementwise_min

# The largest log ratio of a predicted side to its anchor's, so that an untrained network can't overflow exp().
MAX_LOG_RATIO = math.log(1000.0 / 16.0)
# The largest logarithm of a distance from a point, for the same reason: e^8 = 2981 units.
MAX_LOG_DISTANCE = 8.0
Sides = tuple[Tensor, Tensor, Tensor, Tensor]  # left, top, right, bottom
_EPSILON = 1e-7  # px²; keeps ratios of empty boxes finite


def area(boxes: Tensor) -> Tensor:
    """Areas [...] in px² of boxes [..., 4]; 0 for an inverted box."""
    left_top, right_bottom = boxes.split(2, dim=-1)
    return _spanned(left_top, right_bottom)


def _spanned(left_top: Tensor, right_bottom: Tensor) -> Tensor:
    """The area between corners [..., 2]; 0 where they are the wrong way round."""
    width, height = (right_bottom - left_top).clamp(min=0).unbind(-1)
    return width * height


def _intersection_and_union(low_a: Tensor, high_a: Tensor, low_b: Tensor, high_b: Tensor) -> tuple[Tensor, Tensor]:
    """The areas [...] of boxes that are given by their corners [..., 2]; the union's is above 0."""
    intersection = _spanned(elementwise_max(low_a, low_b), elementwise_min(high_a, high_b))
    union = _spanned(low_a, high_a) + _spanned(low_b, high_b) - intersection
    return intersection, union.clamp(min=_EPSILON)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [...] of the pairs a, b [..., 4] (broadcast); 0 where both are empty."""
    intersection, union = _intersection_and_union(*a.split(2, dim=-1), *b.split(2, dim=-1))
    return intersection / union


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU [...] of the pairs a, b [..., 4], in [−1, 1] (arXiv 1902.09630, Algorithm 1)."""
    low_a, high_a = a.split(2, dim=-1)
    low_b, high_b = b.split(2, dim=-1)
    intersection, union = _intersection_and_union(low_a, high_a, low_b, high_b)
    width, height = (elementwise_max(high_a, high_b) - elementwise_min(low_a, low_b)).unbind(-1)
    hull = (width * height).clamp(min=_EPSILON)
    return intersection / union - (hull - union) / hull


def centers(boxes: Tensor) -> Tensor:
    """Centres [..., 2] (x, y) of boxes [..., 4]."""
    left_top, right_bottom = boxes.split(2, dim=-1)
    return (left_top + right_bottom) / 2


def decode_deltas(
    x: Tensor,
    y: Tensor,
    width: Tensor,
    height: Tensor,
    deltas: Sequence[Tensor],
    std: tuple[float, float, float, float],
) -> Sides:
    """The sides [...] of boxes from anchors, given by centre and size [...], and deltas (dx, dy, dw, dh), each [...].

    `std` scales the deltas; the log ratios are clamped to `MAX_LOG_RATIO` (R-CNN, arXiv 1311.2524, appendix C).
    """
    dx, dy, dw, dh = (delta * s for delta, s in zip(deltas, std, strict=True))
    x, y = x + dx * width, y + dy * height
    w = width * dw.clamp(max=MAX_LOG_RATIO).exp() / 2
    h = height * dh.clamp(max=MAX_LOG_RATIO).exp() / 2
    return x - w, y - h, x + w, y + h


def decode_delta_pairs(anchors: Tensor, deltas: Tensor, std: tuple[float, float, float, float]) -> Tensor:
    """`decode_deltas` of anchors [..., 4] xyxy and deltas [..., 4]: boxes [..., 4] xyxy, in half as many operations."""
    low, high = anchors.split(2, dim=-1)
    shift, growth = deltas.split(2, dim=-1)
    size = high - low
    center = (low + high) / 2 + _times(shift, std[:2]) * size
    half = size * _times(growth, std[2:]).clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat((center - half, center + half), dim=-1)


def _times(pair: Tensor, factors: tuple[float, ...]) -> Tensor:
    """A pair [..., 2] times two numbers."""
    first, second = factors
    if first == second:
        return pair * first
    return stack([number * factor for number, factor in zip(pair.unbind(-1), factors, strict=True)], dim=-1)


def encode_deltas(anchors: Tensor, boxes: Tensor, std: tuple[float, float, float, float]) -> Tensor:
    """The deltas [..., 4] that `decode_deltas` turns into boxes [..., 4]; finite for an empty box too."""
    sides = anchors[..., 2:] - anchors[..., :2]
    shift = (centers(boxes) - centers(anchors)) / sides
    growth = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=_EPSILON) / sides).log()
    deltas = torch.cat((shift, growth), dim=-1)
    return stack([delta / s for delta, s in zip(deltas.unbind(-1), std, strict=True)], dim=-1)


def decode_distances(x: Tensor, y: Tensor, distances: Sequence[Tensor]) -> Sides:
    """The sides [...] of boxes at distances (left, top, right, bottom), each [...] px, from points (x, y) [...]."""
    left, top, right, bottom = distances
    return x - left, y - top, x + right, y + bottom


def encode_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances (left, top, right, bottom) [..., 4] px from points [..., 2] to the sides of boxes [..., 4]."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """FCOS centerness [...] in [0, 1] of points [..., 2] in boxes [..., 4]; 0 outside (arXiv 1904.01355, eq. 3)."""
    low, high = boxes.split(2, dim=-1)
    left_top, right_bottom = points - low, high - points
    nearer = elementwise_min(left_top, right_bottom).clamp(min=0)
    farther = elementwise_max(left_top, right_bottom).clamp(min=_EPSILON)
    across, along = (nearer / farther).unbind(-1)
    product = across * along
    # The square root's slope at 0 is infinite; the inner `where` keeps a gradient through it finite.
    positive = product > 0
    return where(positive, where(positive, product, 1.0).sqrt(), 0.0)
