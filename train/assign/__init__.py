"""Which anchors are trained on which object: the assigners, and the table that finds one by name."""

from .assigners import (
    ASSIGNERS,
    Assigner,
    Assignment,
    AssignmentMethod,
    CenterSampling,
    KCounts,
    atss,
    build_assigner,
    fcos,
    fcos_nearest,
    fcos_radius,
    max_iou,
    topk,
)
from .regions import ignore_regions
from .types import NEGATIVE, Assigned

__all__ = [
    "ASSIGNERS",
    "NEGATIVE",
    "Assigned",
    "Assigner",
    "Assignment",
    "AssignmentMethod",
    "CenterSampling",
    "KCounts",
    "atss",
    "build_assigner",
    "fcos",
    "fcos_nearest",
    "fcos_radius",
    "ignore_regions",
    "max_iou",
    "topk",
]
