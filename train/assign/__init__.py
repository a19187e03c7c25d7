"""Which anchors are trained on which object.

All methods take boxes [B, G, 4], a mask [B, G] and the levels, then their own settings, and return `Assigned`;
`assign` calls the one that a configuration asks for.
"""

from torch import Tensor

from .. import config
from ..anchors import Level
from .atss import atss, topk
from .fcos import fcos, fcos_nearest, fcos_radius
from .max_iou import max_iou
from .types import NEGATIVE, Assigned

__all__ = ["NEGATIVE", "Assigned", "assign", "atss", "fcos", "fcos_nearest", "fcos_radius", "max_iou", "topk"]


def assign(gt_boxes: Tensor, gt_mask: Tensor, levels: list[Level], rule: config.Assignment) -> Assigned:
    """Assign the anchors of `levels` to boxes [B, G, 4] xyxy px; `gt_mask` bool [B, G] says which boxes are real."""
    scene = gt_boxes, gt_mask, levels
    if rule.method == "atss":
        return atss(*scene, rule.k, rule.k_counts, rule.center_in_box)
    if rule.method == "topk":
        return topk(*scene, rule.k, rule.k_counts, rule.center_in_box)
    if rule.method == "max_iou":
        return max_iou(*scene, rule.positive_iou, rule.negative_iou, rule.low_quality, rule.center_in_box)
    if rule.center_sampling == "radius":
        return fcos_radius(*scene, rule.level_limits, rule.radius)
    if rule.center_sampling == "nearest":
        return fcos_nearest(*scene, rule.level_limits, rule.k, rule.k_counts)
    return fcos(*scene, rule.level_limits)
