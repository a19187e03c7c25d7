"""Positives by IoU thresholds, as RetinaNet and Faster R-CNN choose them (arXiv 1708.02002, section 4; 1506.01497)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry.anchors import AnchorGrid, Level, grid_anchors
from ..geometry.boxes import iou
from .atss import centers_inside
from .types import NEGATIVE, Assigned


def max_iou(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
    center_in_box: bool = False,
    grid: AnchorGrid | None = None,
) -> Assigned:
    """Assign the anchors of `levels` to boxes [B, G, 4] xyxy px; `gt_mask` bool [B, G] says which boxes are real.

    An anchor belongs to the box of highest IoU, of equal IoUs to the lower index. The anchor is positive from
    `positive_iou` on, negative below `negative_iou`, and ignored in between. With `low_quality` each box also gets all
    anchors that share the box's highest IoU, if that is above 0; an anchor of several such boxes goes to the last. With
    `center_in_box` only anchors whose centre lies in their box are positive.
    """
    anchors = grid_anchors(levels, device=gt_boxes.device) if grid is None else grid.boxes
    if gt_boxes.shape[1] == 0:
        none = torch.full((len(gt_boxes), len(anchors)), NEGATIVE, device=gt_boxes.device)
        return Assigned(none, torch.zeros_like(none, dtype=torch.bool))
    # Image by image: the [anchors × boxes] matrices of a whole batch would take gigabytes.
    matched, ignored = zip(
        *(
            _one_image(anchors, boxes, mask, positive_iou, negative_iou, low_quality, center_in_box)
            for boxes, mask in zip(gt_boxes.unbind(), gt_mask.unbind(), strict=True)
        ),
        strict=True,
    )
    return Assigned(torch.stack(matched), torch.stack(ignored))


def _one_image(
    anchors: Tensor,
    boxes: Tensor,
    mask: Tensor,
    positive_iou: float,
    negative_iou: float,
    low_quality: bool,
    center_in_box: bool,
) -> tuple[Tensor, Tensor]:
    """The box of each anchor, int64 [N], and which anchors are ignored, bool [N]."""
    overlap = torch.where(mask.unsqueeze(1), iou(boxes.unsqueeze(1), anchors), -1.0)  # [G, N]
    best, box = overlap.max(dim=0)
    positive = best >= positive_iou
    if low_quality:
        highest = overlap.amax(dim=1, keepdim=True)
        wanted = (overlap == highest) & (highest > 0)
        rows = torch.arange(len(boxes), device=boxes.device).unsqueeze(1)
        last = torch.where(wanted, rows, NEGATIVE).amax(dim=0)
        box = torch.where(last >= 0, last, box)
        positive = positive | (last >= 0)
    if center_in_box:
        positive = positive & centers_inside(anchors.unsqueeze(1), boxes[box]).squeeze(1)
    matched = torch.where(positive, box, NEGATIVE)
    return matched, (best >= negative_iou) & (best < positive_iou) & ~positive
