"""Slow and obvious versions of what `train` computes: plain loops in float64, from the papers, no shared code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Box = Sequence[float]


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where the union is empty."""
    overlap = _side(a[0], a[2], b[0], b[2]) * _side(a[1], a[3], b[1], b[3])
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return overlap / union if union > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """arXiv 1902.09630, Algorithm 1."""
    overlap = _side(a[0], a[2], b[0], b[2]) * _side(a[1], a[3], b[1], b[3])
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (hull - union) / hull


def _side(a1: float, a2: float, b1: float, b2: float) -> float:
    return max(0.0, min(a2, b2) - max(a1, b1))


def decode(anchor: Box, delta: Box, std: Box) -> list[float]:
    """R-CNN's box coding, log ratios at most log(1000 / 16)."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + delta[0] * std[0] * width
    y = (anchor[1] + anchor[3]) / 2 + delta[1] * std[1] * height
    limit = math.log(1000 / 16)
    w = width * math.exp(min(delta[2] * std[2], limit))
    h = height * math.exp(min(delta[3] * std[3], limit))
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def centerness(point: Sequence[float], box: Box) -> float:
    """arXiv 1904.01355, equation 3; 0 outside the box."""
    left, top = point[0] - box[0], point[1] - box[1]
    right, bottom = box[2] - point[0], box[3] - point[1]
    if min(left, top, right, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def anchors_of(canvas_hw: tuple[int, int], levels: int, scale: float) -> list[list[list[float]]]:
    """The anchors of each level, cell by cell."""
    found = []
    for level in range(levels):
        stride = 8 * 2**level
        side = scale * stride
        boxes = []
        for i in range(math.ceil(canvas_hw[0] / stride)):
            for j in range(math.ceil(canvas_hw[1] / stride)):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                boxes.append([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
        found.append(boxes)
    return found


def atss(gt_boxes: Tensor, canvas_hw: tuple[int, int], levels: int, scale: float, k: int) -> list[int]:
    """Algorithm 1 of arXiv 1912.02424 for the boxes of one image; per anchor the index of its box, or −1.

    The full distance matrix of each level and a stable sort; float32 as in the product, since a comparison of an IoU
    with its own mean can hang on the last bit. Ties: lower anchor, lower box.
    """
    per_level = [torch.tensor(boxes) for boxes in anchors_of(canvas_hw, levels, scale)]
    every = torch.cat(per_level)
    owner = [-1] * len(every)
    owner_iou = [-1.0] * len(every)
    for g, box in enumerate(gt_boxes):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        chosen: list[int] = []
        first = 0
        for boxes in per_level:
            dx, dy = (boxes[:, 0] + boxes[:, 2]) / 2 - x, (boxes[:, 1] + boxes[:, 3]) / 2 - y
            order = sorted(range(len(boxes)), key=(dx * dx + dy * dy).tolist().__getitem__)  # sorted() is stable
            chosen += [first + i for i in order[:k]]
            first += len(boxes)
        overlap = torch.tensor([iou32(every[i], box) for i in chosen])
        threshold = overlap.mean() + (overlap.std() if len(chosen) > 1 else 0.0)
        for i, value in zip(chosen, overlap, strict=True):
            cx, cy = (every[i, 0] + every[i, 2]) / 2, (every[i, 1] + every[i, 3]) / 2
            inside = min(cx - box[0], cy - box[1], box[2] - cx, box[3] - cy) > 0.01
            if value >= threshold and inside and value > owner_iou[i]:
                owner[i], owner_iou[i] = g, float(value)
    return owner


def iou32(a: Tensor, b: Tensor) -> Tensor:
    w = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).clamp(min=0)
    h = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).clamp(min=0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


def focal_loss(logits: Tensor, labels: Sequence[int], alpha: float, gamma: float) -> float:
    """arXiv 1708.02002's focal loss in float64, entry by entry; logits [N, C], label −1 for a negative."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        for c, x in enumerate(row):
            signed = x if c == label else -x
            # log σ(x) without overflow
            log_p = -math.log1p(math.exp(-signed)) if signed > 0 else signed - math.log1p(math.exp(signed))
            weight = alpha if c == label else 1 - alpha
            total += -weight * (1 - math.exp(log_p)) ** gamma * log_p
    return total


class Losses:
    """The three losses of a batch as the criterion defines them, in float64 with gradients, anchor by anchor."""

    def __init__(self, logits: Tensor, deltas: Tensor, center: Tensor, owners: list[list[int]], anchors: Tensor):
        """logits [B, N, C], deltas [B, N, 4], center [B, N], all float64; owners: the box of each anchor, −1 none."""
        self.logits, self.deltas, self.center, self.owners, self.anchors = logits, deltas, center, owners, anchors

    def sums(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, float, int]:
        """Sums of focal, weighted GIoU and centerness losses; the sum of centerness; the number of positives."""
        focal = box_loss = center_loss = torch.zeros((), dtype=torch.float64)
        weight, positives = 0.0, 0
        for b, owners in enumerate(self.owners):
            for n, owner in enumerate(owners):
                label = -1 if owner < 0 else int(labels[b, owner])
                focal = focal + _focal_row(self.logits[b, n], label)
                if owner < 0:
                    continue
                anchor, box = self.anchors[n], boxes[b, owner]
                point = [float(anchor[0] + anchor[2]) / 2, float(anchor[1] + anchor[3]) / 2]
                quality = centerness(point, box.tolist())
                box_loss = box_loss + quality * (1 - giou64(_decode64(anchor, self.deltas[b, n]), box))
                x = self.center[b, n]
                center_loss = center_loss - quality * torch.sigmoid(x).log() - (1 - quality) * torch.sigmoid(-x).log()
                weight, positives = weight + quality, positives + 1
        return focal, box_loss, center_loss, weight, positives


def _focal_row(logits: Tensor, label: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c, x in enumerate(logits):
        p = torch.sigmoid(x)
        total = total + (-0.25 * (1 - p) ** 2 * p.log() if c == label else -0.75 * p**2 * (1 - p).log())
    return total


def _decode64(anchor: Tensor, delta: Tensor) -> list[Tensor]:
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = (anchor[0] + anchor[2]) / 2 + delta[0] * 0.1 * w, (anchor[1] + anchor[3]) / 2 + delta[1] * 0.1 * h
    w, h = w * torch.exp(0.2 * delta[2]), h * torch.exp(0.2 * delta[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def giou64(a: list[Tensor], b: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64)
    w = torch.maximum(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]), zero)
    h = torch.maximum(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]), zero)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    hull = (torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])) * (
        torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1])
    )
    return w * h / union - (hull - union) / hull
