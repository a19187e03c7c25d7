"""Where the anchors are: level l has stride s = 8 · 2^l and ceil(H/s) × ceil(W/s) cells.

Cell (i, j) is centred at ((j + ½)s, (i + ½)s) and carries one square anchor. Flat anchor indices run over the levels,
in each row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FIRST_STRIDE = 8


class Level(NamedTuple):
    """One pyramid level on a canvas; plain numbers, so that shapes derived from it are static."""

    stride: int  # px
    rows: int
    columns: int
    side: float  # of the anchors, px

    @property
    def cells(self) -> int:
        return self.rows * self.columns


def strides(levels: int) -> list[int]:
    """Strides in px of a pyramid's levels: 8, 16, 32, …"""
    return [FIRST_STRIDE << level for level in range(levels)]


def pyramid_levels(canvas_hw: tuple[int, int], levels: int, scale: float) -> list[Level]:
    """The levels of a canvas of height, width px, with anchors of `scale` strides."""
    height, width = canvas_hw
    return [Level(s, -(-height // s), -(-width // s), scale * s) for s in strides(levels)]


def grid_anchors(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """All anchors of the levels, [N, 4] xyxy px, float32."""
    boxes = []
    for level in levels:
        x = (torch.arange(level.columns, device=device, dtype=torch.float32) + 0.5) * level.stride
        y = (torch.arange(level.rows, device=device, dtype=torch.float32) + 0.5) * level.stride
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        center = torch.stack((center_x, center_y), dim=-1).reshape(-1, 2)
        boxes.append(torch.cat((center - level.side / 2, center + level.side / 2), dim=-1))
    return torch.cat(boxes)
