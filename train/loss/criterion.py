"""The training loss: focal classification, boxes (weighted by centerness where there is one), centerness.

Sources: arXiv 1708.02002 (RetinaNet), 1904.01355 (FCOS), 1912.02424 (ATSS). The detectors differ in the parameters of
this one criterion and in nothing else.

Dense over all anchors with masks in place of boolean indexing: no shape depends on data and the host never waits.
B images, N anchors over all levels, C classes, G boxes of an image (padded).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.bounds import Bounds, Fraction
from runtime.names import unknown_name

from ..assign import Assigned, Assigner
from ..geometry.anchors import AnchorGrid, Anchors, Level, anchor_grid, anchors_per_cell, pyramid_levels
from ..geometry.box_coder import Regression, decode, encode
from ..geometry.boxes import centerness, giou, iou
from ..model.detector import DenseOutputs
from .losses import focal_loss_sum

BoxLoss = Literal["giou", "iou", "smooth_l1"]
Weight = Annotated[float, Bounds(0, 10_000)]
GRIDS = 16  # canvases whose anchors a criterion keeps


@dataclass(frozen=True)
class Loss:
    """The parts of the training loss: their kinds and weights."""

    focal_alpha: Fraction = 0.25  # weight of positives in the focal loss; negatives have 1 − this
    focal_gamma: Annotated[float, Bounds(0, 100)] = 2.0  # exponent of the focal loss
    box: BoxLoss = "giou"  # "iou" is −ln IoU; "smooth_l1" compares codes, not boxes
    smooth_l1_beta: Weight = 0.11  # smooth L1 is quadratic below this difference; 0: L1
    box_weight: Weight = 2.0  # factor of the box loss
    centerness_weight: Weight = 1.0  # factor of the centerness loss


class Targets(NamedTuple):
    """The ground truth of a batch, padded to the same number of boxes."""

    boxes: Tensor  # float32 [B, G, 4] xyxy, canvas px; padded rows are ignored
    labels: Tensor  # int64 [B, G]
    mask: Tensor  # bool [B, G]: which rows are boxes


class Losses(NamedTuple):
    """The weighted losses of a batch, scalars; training minimises `total`."""

    total: Tensor
    classification: Tensor
    box: Tensor
    centerness: Tensor  # 0 where the head has no centerness


class Normalizers(NamedTuple):
    """The divisors of the losses, scalars."""

    positives: Tensor  # number of positive anchors, for classification and centerness
    quality: Tensor  # sum of the weights of their box losses


@dataclass(frozen=True)
class Criterion:
    """The losses of a detector, with everything that they depend on besides outputs and targets.

    `canvas_hw` is the height and width of the images in px, from which the anchors follow.
    """

    levels: int  # of the pyramid
    anchors: Anchors
    regression: Regression
    assigner: Assigner
    has_centerness: bool
    loss: Loss
    _grids: dict[tuple[tuple[int, int], torch.device], AnchorGrid] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(
        self,
        outputs: DenseOutputs,
        targets: Targets,
        canvas_hw: tuple[int, int],
        normalizers: Normalizers | None = None,
        assigned: Assigned | None = None,
    ) -> Losses:
        """The weighted losses of the network's outputs for these targets, scalars in float32.

        `normalizers` are given where the targets are a part of a larger batch, and `assigned` where the targets were
        assigned before; either is computed here otherwise.
        """
        assigned = self.assign(targets, canvas_hw) if assigned is None else assigned
        grid = self.grid(canvas_hw, targets.boxes.device)
        return self.losses(flatten(outputs, anchors_per_cell(self.anchors)), targets, assigned, grid, normalizers)

    def losses(
        self,
        outputs: FlatOutputs,
        targets: Targets,
        assigned: Assigned,
        grid: AnchorGrid,
        normalizers: Normalizers | None = None,
    ) -> Losses:
        """The weighted losses of flat outputs for assigned targets, scalars; `grid` is the canvas's anchors.

        `normalizers` are given where the targets are a part of a larger batch. Sizes are read from the tensors alone,
        so one compiled graph serves every canvas.
        """
        positive = assigned.matched >= 0  # [B, N]
        labels, boxes = _matched_targets(assigned, positive, targets)
        quality = self._quality(positive, boxes, grid)
        if normalizers is None:
            normalizers = at_least_one(Normalizers(positive.sum().float(), quality.sum()))
        alpha, gamma = self.loss.focal_alpha, self.loss.focal_gamma
        classification = focal_loss_sum(outputs.class_logits, labels, alpha, gamma, assigned.ignored)
        classification = classification / normalizers.positives

        box = (self._box_losses(outputs.box_codes, boxes, positive, grid) * quality).sum()
        box = self.loss.box_weight * box / normalizers.quality
        if outputs.centerness is None:
            return Losses(classification + box, classification, box, torch.zeros_like(box))

        center = F.binary_cross_entropy_with_logits(outputs.centerness, quality, reduction="none")
        center = torch.where(positive, center, 0.0).sum()
        center = self.loss.centerness_weight * center / normalizers.positives
        return Losses(classification + box + center, classification, box, center)

    def assign(self, targets: Targets, canvas_hw: tuple[int, int], grid: AnchorGrid | None = None) -> Assigned:
        """Which anchors of the canvas are trained on which target; without gradients.

        `grid`, the canvas's anchors, is given where the canvas is a number that the compiler doesn't know.
        """
        grid = self.grid(canvas_hw, targets.boxes.device) if grid is None else grid
        with torch.no_grad():
            return self.assigner(targets.boxes, targets.mask, self._levels(canvas_hw), grid=grid)

    def normalizers(
        self, targets: Targets, canvas_hw: tuple[int, int], assigned: Assigned | None = None
    ) -> Normalizers:
        """The divisors of a batch's losses; 0 where no anchor is positive.

        The normalizers of a batch are the sums of its parts' normalizers. `assigned` is given where the targets were
        assigned before.
        """
        assigned = self.assign(targets, canvas_hw) if assigned is None else assigned
        return self.count(targets, assigned, self.grid(canvas_hw, targets.boxes.device))

    def count(self, targets: Targets, assigned: Assigned, grid: AnchorGrid) -> Normalizers:
        """`normalizers` of assigned targets; `grid` is the canvas's anchors."""
        positive = assigned.matched >= 0
        _, boxes = _matched_targets(assigned, positive, targets)
        return Normalizers(positive.sum().float(), self._quality(positive, boxes, grid).sum())

    def grid(self, canvas_hw: tuple[int, int], device: torch.device) -> AnchorGrid:
        """The anchors of a canvas as tensors on `device`; those of the last `GRIDS` new canvases are kept."""
        if torch.compiler.is_compiling():
            return anchor_grid(self._levels(canvas_hw), device)
        key = (canvas_hw, device)
        if key not in self._grids:
            if len(self._grids) == GRIDS:
                del self._grids[next(iter(self._grids))]
            with torch.inference_mode(False):  # what is made in inference mode can't take part in a training step
                self._grids[key] = anchor_grid(self._levels(canvas_hw), device)
        return self._grids[key]

    def _levels(self, canvas_hw: tuple[int, int]) -> list[Level]:
        return pyramid_levels(canvas_hw, self.levels, self.anchors)

    def _quality(self, positive: Tensor, boxes: Tensor, grid: AnchorGrid) -> Tensor:
        """The weight of each anchor's box loss [B, N]: its centerness target, 1 without centerness, 0 if negative."""
        if not self.has_centerness:
            return positive.float()
        return torch.where(positive, centerness(grid.points, boxes), 0.0)

    def _box_losses(self, codes: Tensor, boxes: Tensor, positive: Tensor, grid: AnchorGrid) -> Tensor:
        """The loss of each anchor's code [B, N, 4] for its box [B, N, 4]: [B, N], finite for negatives too."""
        anchors, strides = grid.boxes, grid.strides
        # A negative has no box; its own anchor stands in, so that its (unused) loss has a finite gradient.
        boxes = torch.where(positive.unsqueeze(-1), boxes, anchors)
        match self.loss.box:
            case "smooth_l1":
                wanted = encode(anchors, strides, boxes, self.regression)
                beta = self.loss.smooth_l1_beta
                return F.smooth_l1_loss(codes, wanted, reduction="none", beta=beta).sum(dim=-1)
            case "iou":
                return -iou(decode(anchors, strides, codes, self.regression), boxes).clamp(min=1e-6).log()
            case "giou":
                return 1 - giou(decode(anchors, strides, codes, self.regression), boxes)
            case _:
                unknown_name(self.loss.box, "loss.box", BoxLoss)


def rows_of(assigned: Assigned, rows: slice) -> Assigned:
    """The assignment of a slice of a batch's images."""
    return Assigned(assigned.matched[rows], None if assigned.ignored is None else assigned.ignored[rows])


def at_least_one(counts: Normalizers) -> Normalizers:
    """The normalizers, clamped so that the losses of a batch of empty images are finite."""
    return Normalizers(counts.positives.clamp(min=1), counts.quality.clamp(min=1e-6))


class FlatOutputs(NamedTuple):
    """The network's outputs with the levels joined in anchor order, in float32."""

    class_logits: Tensor  # [B, N, C]
    box_codes: Tensor  # [B, N, 4]
    centerness: Tensor | None  # [B, N] logits; None where the head has none


def flatten(outputs: DenseOutputs, anchors: int = 1) -> FlatOutputs:
    """Join the levels of the outputs, which have `anchors` anchors per cell."""

    def join(maps: list[Tensor]) -> Tensor:
        flat = torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1)  # [B, cells, A · channels]
        return (flat.unflatten(2, (anchors, -1)).flatten(1, 2) if anchors > 1 else flat).float()

    center = join(outputs.centerness).squeeze(-1) if outputs.centerness else None
    return FlatOutputs(join(outputs.class_logits), join(outputs.box_regression), center)


def _matched_targets(assigned: Assigned, positive: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Each anchor's class, int64 [B, N], −1 for a negative, and its box, [B, N, 4], arbitrary for a negative."""
    if targets.boxes.shape[1] == 0:
        return assigned.matched, targets.boxes.new_zeros((*positive.shape, 4))
    index = assigned.matched.clamp(min=0)
    labels = torch.where(positive, targets.labels.gather(1, index), -1)
    return labels, targets.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
