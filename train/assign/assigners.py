"""Every way to choose positives, by name: `ASSIGNERS`.

A new one is a function of boxes [B, G, 4], their mask [B, G], the levels and `grid`, the levels' anchors where they
were made before; a name in `AssignmentMethod`; and an entry in the table, which takes the function's other arguments
from `Assignment`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Protocol

from torch import Tensor

from runtime.bounds import Bounds, Fraction, Items
from runtime.names import unknown_name

from ..geometry.anchors import AnchorGrid, Level
from ..tables import part_of
from .atss import KCounts, atss, topk
from .fcos import fcos, fcos_nearest, fcos_radius
from .max_iou import max_iou
from .types import Assigned

AssignmentMethod = Literal["atss", "topk", "max_iou", "fcos"]
CenterSampling = Literal["none", "radius", "nearest"]
Distance = Annotated[float, Bounds(0, 1e6, above=True)]


class Assigner(Protocol):
    """Assigns the anchors of `levels` to boxes float32 [B, G, 4] xyxy px, of which `gt_mask` bool [B, G] are real.

    `grid` has the anchors where they were made before.
    """

    def __call__(
        self, gt_boxes: Tensor, gt_mask: Tensor, levels: list[Level], *, grid: AnchorGrid | None = None
    ) -> Assigned:
        """The box of each anchor."""


@dataclass(frozen=True)
class Assignment:
    """Which anchors are positive for an object. Settings of methods other than `method` have no effect."""

    method: AssignmentMethod = "atss"  # the rule; "atss" is the paper's
    # Candidates per level of "atss", "topk", and "fcos" with center sampling "nearest".
    k: Annotated[int, Bounds(1, 100_000)] = 9
    k_counts: KCounts = "cells"  # whether k counts cells with all their anchors, or single anchors
    # Whether the centre of a positive must lie inside its object ("atss", "topk", "max_iou"; "fcos" implies it).
    center_in_box: bool = True
    positive_iou: Fraction = 0.5  # "max_iou": least IoU of a positive
    negative_iou: Fraction = 0.4  # "max_iou": anchors below it are negative, and anchors in between are ignored
    low_quality: bool = True  # "max_iou": each object's best anchors are positive whatever their IoU
    # "fcos": the largest distance from a point to a side of its box, in px, on each level but the last, which has no
    # limit.
    level_limits: Annotated[tuple[Distance, ...], Items(0, 16, rising=True)] = (64.0, 128.0, 256.0, 512.0)
    # "fcos": all points in the box are positive ("none"), or only the points within `radius` strides of its centre
    # ("radius"), or only the k nearest to its centre ("nearest").
    center_sampling: CenterSampling = "none"
    radius: Annotated[float, Bounds(0, 1000, above=True)] = 1.5  # in strides, for center sampling "radius"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See `bounds.Conflicts`."""
        if self.negative_iou > self.positive_iou:
            yield "negative_iou", f"at most positive_iou, here {self.positive_iou}"


def _by_center_sampling(rule: Assignment) -> Assigner:
    match rule.center_sampling:
        case "none":
            return partial(fcos, level_limits=rule.level_limits)
        case "radius":
            return partial(fcos_radius, level_limits=rule.level_limits, radius=rule.radius)
        case "nearest":
            return partial(fcos_nearest, level_limits=rule.level_limits, k=rule.k, k_counts=rule.k_counts)
        case _:
            unknown_name(rule.center_sampling, "assignment.center_sampling", CenterSampling)


ASSIGNERS: dict[AssignmentMethod, Callable[[Assignment], Assigner]] = {
    "atss": lambda rule: partial(atss, k=rule.k, k_counts=rule.k_counts, center_in_box=rule.center_in_box),
    "topk": lambda rule: partial(topk, k=rule.k, k_counts=rule.k_counts, center_in_box=rule.center_in_box),
    "max_iou": lambda rule: partial(
        max_iou,
        positive_iou=rule.positive_iou,
        negative_iou=rule.negative_iou,
        low_quality=rule.low_quality,
        center_in_box=rule.center_in_box,
    ),
    "fcos": _by_center_sampling,
}


def build_assigner(rule: Assignment) -> Assigner:
    """The assigner that a rule asks for, with its settings. Raises UserError for an unknown name."""
    return part_of(ASSIGNERS, rule.method, "assignment.method")(rule)
