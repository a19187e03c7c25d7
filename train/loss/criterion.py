"""The training loss: focal classification, boxes (weighted by centerness where there is one), centerness.

Sources: arXiv 1708.02002 (RetinaNet), 1904.01355 (FCOS), 1912.02424 (ATSS). Which parts there are, and of what kind, is
configuration; the detectors differ in nothing else.

Dense over all anchors with masks in place of boolean indexing: no shape depends on data and the host never waits.
B images, N anchors over all levels, C classes, G boxes of an image (padded).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.names import unknown_name

from .. import config
from ..assign import Assigned, assign
from ..geometry.anchors import Level, grid_anchors, grid_points, grid_strides, pyramid_levels
from ..geometry.box_coder import decode, encode
from ..geometry.boxes import centerness, giou, iou
from ..model.detector import DenseOutputs
from .losses import focal_loss_sum, smooth_l1


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
    quality: Tensor  # sum of what their box losses are weighted with


def assign_targets(targets: Targets, canvas_hw: tuple[int, int], model: config.Model) -> Assigned:
    """Which anchors of a canvas are trained on which target."""
    with torch.no_grad():
        return assign(targets.boxes, targets.mask, _levels(canvas_hw, model), model.assignment)


def normalizers_of(
    targets: Targets, canvas_hw: tuple[int, int], model: config.Model, assigned: Assigned | None = None
) -> Normalizers:
    """What the losses of a batch are divided by; 0 where no anchor has a box. Sums of those of its parts.

    `assigned` is these targets' own assignment, where it was made before.
    """
    assigned = assign_targets(targets, canvas_hw, model) if assigned is None else assigned
    positive = assigned.matched >= 0
    _, boxes = _matched_targets(assigned, targets)
    return _normalizers(positive, _quality(positive, boxes, _levels(canvas_hw, model), model))


def criterion(
    outputs: DenseOutputs,
    targets: Targets,
    canvas_hw: tuple[int, int],
    model: config.Model,
    normalizers: Normalizers | None = None,
    assigned: Assigned | None = None,
) -> Losses:
    """The losses of the network's outputs for the anchors of a canvas, assigned to the targets.

    `normalizers` are those of these targets unless given, as where they are part of a larger batch; `assigned` is made
    here unless it was before.
    """
    assigned = assign_targets(targets, canvas_hw, model) if assigned is None else assigned
    levels = _levels(canvas_hw, model)
    logits, regression, center_logits = flatten(outputs, anchors=len(levels[0].sides))
    positive = assigned.matched >= 0  # [B, N]
    labels, boxes = _matched_targets(assigned, targets)
    quality = _quality(positive, boxes, levels, model)
    if normalizers is None:
        normalizers = at_least_one(_normalizers(positive, quality))
    positives = normalizers.positives
    alpha, gamma = model.loss.focal_alpha, model.loss.focal_gamma
    classification = focal_loss_sum(logits, labels, alpha, gamma, assigned.ignored) / positives

    box = (_box_losses(regression, boxes, positive, levels, model) * quality).sum()
    box = model.loss.box_weight * box / normalizers.quality
    if center_logits is None:
        return Losses(classification + box, classification, box, torch.zeros_like(box))

    center = F.binary_cross_entropy_with_logits(center_logits, quality, reduction="none")
    center = model.loss.centerness_weight * torch.where(positive, center, 0.0).sum() / positives
    return Losses(classification + box + center, classification, box, center)


def rows_of(assigned: Assigned, rows: slice) -> Assigned:
    """The assignment of some of a batch's images."""
    return Assigned(assigned.matched[rows], None if assigned.ignored is None else assigned.ignored[rows])


def _levels(canvas_hw: tuple[int, int], model: config.Model) -> list[Level]:
    return pyramid_levels(canvas_hw, model.pyramid.levels, model.anchors)


def at_least_one(counts: Normalizers) -> Normalizers:
    """The counts may be 0 in a batch of empty images; this keeps the losses finite."""
    return Normalizers(counts.positives.clamp(min=1), counts.quality.clamp(min=1e-6))


def _normalizers(positive: Tensor, quality: Tensor) -> Normalizers:
    return Normalizers(positive.sum().float(), quality.sum())


def _quality(positive: Tensor, boxes: Tensor, levels: list[Level], model: config.Model) -> Tensor:
    """The weight of each anchor's box loss [B, N]: its centerness target, 1 without centerness, 0 for a negative."""
    if not model.head.has_centerness:
        return positive.float()
    return torch.where(positive, centerness(grid_points(levels, device=boxes.device), boxes), 0.0)


def _box_losses(
    regression: Tensor, boxes: Tensor, positive: Tensor, levels: list[Level], model: config.Model
) -> Tensor:
    """The loss of each anchor's code [B, N, 4] for its box [B, N, 4]: [B, N], finite for negatives too."""
    anchors = grid_anchors(levels, device=regression.device)
    strides = grid_strides(levels, device=regression.device)
    # A negative has no box; its own anchor stands in, so that its (unused) loss has a finite gradient.
    boxes = torch.where(positive.unsqueeze(-1), boxes, anchors)
    match model.loss.box:
        case "smooth_l1":
            difference = regression - encode(anchors, strides, boxes, model.regression)
            return smooth_l1(difference, model.loss.smooth_l1_beta).sum(dim=-1)
        case "iou":
            return -iou(decode(anchors, strides, regression, model.regression), boxes).clamp(min=1e-6).log()
        case "giou":
            return 1 - giou(decode(anchors, strides, regression, model.regression), boxes)
        case _:
            unknown_name(model.loss.box, "loss.box", config.BoxLoss)


def flatten(outputs: DenseOutputs, anchors: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """Join the levels in anchor order, in float32, for so many anchors per cell.

    Class logits [B, N, C], box codes [B, N, 4], centerness [B, N] or None.
    """

    def join(maps: list[Tensor]) -> Tensor:
        flat = torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1)  # [B, cells, A · channels]
        return flat.unflatten(2, (anchors, -1)).flatten(1, 2).float()

    center = join(outputs.centerness).squeeze(-1) if outputs.centerness else None
    return join(outputs.class_logits), join(outputs.box_regression), center


def _matched_targets(assigned: Assigned, targets: Targets) -> tuple[Tensor, Tensor]:
    """Each anchor's class int64 [B, N] (−1 for a negative) and box [B, N, 4] (any, for a negative)."""
    positive = assigned.matched >= 0
    if targets.boxes.shape[1] == 0:
        return assigned.matched, targets.boxes.new_zeros((*positive.shape, 4))
    index = assigned.matched.clamp(min=0)
    labels = torch.where(positive, targets.labels.gather(1, index), -1)
    return labels, targets.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
