"""The training loss: focal classification, GIoU weighted by centerness, centerness (arXiv 1912.02424, 1904.01355).

Dense over all anchors with masks in place of boolean indexing: no shape depends on data and the host never waits.
B images, N anchors over all levels, C classes, G boxes of an image (padded).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import config
from .anchors import grid_anchors, pyramid_levels
from .assign import Assigned, atss
from .boxes import centerness, centers, decode_deltas, giou
from .detector import DenseOutputs
from .losses import focal_loss_sum


class Targets(NamedTuple):
    """Ground truth of a batch."""

    boxes: Tensor  # float32 [B, G, 4] xyxy, canvas px; padded rows are ignored
    labels: Tensor  # int64 [B, G]
    mask: Tensor  # bool [B, G]: which rows are boxes


class Losses(NamedTuple):
    """Weighted losses of a batch, scalars; `total` is what is minimised."""

    total: Tensor
    classification: Tensor
    box: Tensor
    centerness: Tensor


class Normalizers(NamedTuple):
    """What the losses are divided by, scalars."""

    positives: Tensor  # anchors that have a box
    quality: Tensor  # sum of their centerness targets


def criterion(
    outputs: DenseOutputs,
    targets: Targets,
    canvas_hw: tuple[int, int],
    model: config.Model,
    normalizers: Normalizers | None = None,
) -> Losses:
    """Assign the anchors of a canvas to the targets and compute the losses of the network's outputs.

    `normalizers` are those of these targets unless given, as where they are part of a larger batch.
    """
    assigned, anchors = assign(targets, canvas_hw, model)
    return losses_of(outputs, targets, assigned, anchors, model, normalizers)


def normalizers_of(targets: Targets, canvas_hw: tuple[int, int], model: config.Model) -> Normalizers:
    """What the losses of a batch are divided by; 0 where no anchor has a box. Sums of those of its parts."""
    assigned, anchors = assign(targets, canvas_hw, model)
    positive = assigned.matched >= 0
    _, boxes = _matched_targets(assigned, targets)
    return _normalizers(positive, _quality(positive, anchors, boxes))


def assign(targets: Targets, canvas_hw: tuple[int, int], model: config.Model) -> tuple[Assigned, Tensor]:
    """Which anchors of a canvas are trained on which target, and the anchors [N, 4]."""
    levels = pyramid_levels(canvas_hw, model.pyramid.levels, model.anchors.scale)
    with torch.no_grad():
        assigned = atss(targets.boxes, targets.mask, levels, model.assignment.k)
    return assigned, grid_anchors(levels, device=targets.boxes.device)


def losses_of(
    outputs: DenseOutputs,
    targets: Targets,
    assigned: Assigned,
    anchors: Tensor,
    model: config.Model,
    normalizers: Normalizers | None = None,
) -> Losses:
    """The losses of dense outputs for anchors [N, 4] assigned to targets."""
    logits, regression, center_logits = flatten(outputs)
    positive = assigned.matched >= 0  # [B, N]
    labels, boxes = _matched_targets(assigned, targets)
    quality = _quality(positive, anchors, boxes)
    if normalizers is None:
        normalizers = at_least_one(_normalizers(positive, quality))
    positives = normalizers.positives
    classification = focal_loss_sum(logits, labels, model.loss.focal_alpha, model.loss.focal_gamma) / positives

    predicted = decode_deltas(anchors, regression, model.anchors.delta_std)
    # A negative has no box; its own anchor stands in, so that its (unused) loss has a finite gradient.
    box = ((1 - giou(predicted, torch.where(positive.unsqueeze(-1), boxes, anchors))) * quality).sum()
    box = model.loss.box_weight * box / normalizers.quality

    center = F.binary_cross_entropy_with_logits(center_logits, quality, reduction="none")
    center = model.loss.centerness_weight * torch.where(positive, center, 0.0).sum() / positives
    return Losses(classification + box + center, classification, box, center)


def at_least_one(counts: Normalizers) -> Normalizers:
    """The counts may be 0 in a batch of empty pictures; this keeps the losses finite."""
    return Normalizers(counts.positives.clamp(min=1), counts.quality.clamp(min=1e-6))


def _normalizers(positive: Tensor, quality: Tensor) -> Normalizers:
    return Normalizers(positive.sum().float(), quality.sum())


def _quality(positive: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    """The centerness targets [B, N]; 0 for a negative."""
    return torch.where(positive, centerness(centers(anchors), boxes), 0.0)


def flatten(outputs: DenseOutputs) -> tuple[Tensor, Tensor, Tensor]:
    """Join the levels in anchor order, in float32: class logits [B, N, C], box deltas [B, N, 4], centerness [B, N]."""

    def join(maps: list[Tensor]) -> Tensor:
        return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1).float()

    return join(outputs.class_logits), join(outputs.box_regression), join(outputs.centerness).squeeze(-1)


def _matched_targets(assigned: Assigned, targets: Targets) -> tuple[Tensor, Tensor]:
    """Each anchor's class int64 [B, N] (−1 for a negative) and box [B, N, 4] (any, for a negative)."""
    positive = assigned.matched >= 0
    if targets.boxes.shape[1] == 0:
        return assigned.matched, targets.boxes.new_zeros((*positive.shape, 4))
    index = assigned.matched.clamp(min=0)
    labels = torch.where(positive, targets.labels.gather(1, index), -1)
    return labels, targets.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
