"""Which anchors are trained on which object.

All methods take boxes [B, G, 4], a mask [B, G] and the levels, then their own settings, and return `Assigned`;
`assign` calls the one that a configuration asks for.
"""

from torch import Tensor

from runtime.names import unknown_name

from .. import config
from ..geometry.anchors import Level
from .atss import atss, topk
from .fcos import fcos, fcos_nearest, fcos_radius
from .max_iou import max_iou
from .types import NEGATIVE, Assigned

__all__ = ["NEGATIVE", "Assigned", "assign", "atss", "fcos", "fcos_nearest", "fcos_radius", "max_iou", "topk"]


def assign(gt_boxes: Tensor, gt_mask: Tensor, levels: list[Level], rule: config.Assignment) -> Assigned:
    """Assign the anchors of `levels` to boxes [B, G, 4] xyxy px; `gt_mask` bool [B, G] says which boxes are real."""
    scene = gt_boxes, gt_mask, levels
    match rule.method:
        case "atss":
            return atss(*scene, rule.k, rule.k_counts, rule.center_in_box)
        case "topk":
            return topk(*scene, rule.k, rule.k_counts, rule.center_in_box)
        case "max_iou":
            return max_iou(*scene, rule.positive_iou, rule.negative_iou, rule.low_quality, rule.center_in_box)
        case "fcos":
            return _by_center_sampling(*scene, rule)
        case _:
            unknown_name(rule.method, "assignment.method", config.AssignmentMethod)


def _by_center_sampling(gt_boxes: Tensor, gt_mask: Tensor, levels: list[Level], rule: config.Assignment) -> Assigned:
    match rule.center_sampling:
        case "none":
            return fcos(gt_boxes, gt_mask, levels, rule.level_limits)
        case "radius":
            return fcos_radius(gt_boxes, gt_mask, levels, rule.level_limits, rule.radius)
        case "nearest":
            return fcos_nearest(gt_boxes, gt_mask, levels, rule.level_limits, rule.k, rule.k_counts)
        case _:
            unknown_name(rule.center_sampling, "assignment.center_sampling", config.CenterSampling)
