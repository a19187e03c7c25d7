"""Regions to ignore: what lies in them may be an object or not, so that no anchor learns there that it is none."""

from __future__ import annotations

from torch import Tensor

from .types import NEGATIVE, Assigned


def ignore_regions(assigned: Assigned, regions: Tensor, points: Tensor) -> Assigned:
    """The assignment with no loss for negatives whose centre lies in a region; positives stay.

    `regions` is float32 [B, R, 4] xyxy px, padded with boxes of no size; `points` [N, 2] are the anchors' centres.
    """
    left_top, right_bottom = regions.unsqueeze(1).split(2, dim=-1)  # [B, 1, R, 2]
    place = points[:, None]  # [N, 1, 2]
    inside = ((place > left_top) & (place < right_bottom)).all(dim=-1).any(dim=-1)  # [B, N]
    ignored = inside & (assigned.matched == NEGATIVE)
    return Assigned(assigned.matched, ignored if assigned.ignored is None else assigned.ignored | ignored)
