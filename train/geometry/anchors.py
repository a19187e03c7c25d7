"""Where the anchors are: level l has stride s = 8 · 2^l and ceil(H/s) × ceil(W/s) cells.

Cell (i, j) is centred at ((j + ½)s, (i + ½)s) and carries A anchors, one unless the configuration says more. Flat
anchor indices run over the levels, in each row by row, and over the anchors of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from runtime.names import unknown_name

FIRST_STRIDE = 8  # px
Outermost = Literal["scales", "ratios"]


@dataclass(frozen=True)
class Anchors:
    """The anchors of each cell: every scale with every ratio."""

    scale: float = 8.0  # side of the smallest square, in strides
    scales_per_octave: int = 1  # n > 1: sides of scale · 2^(i / n), i < n
    ratios: tuple[float, ...] = (1.0,)  # height / width, at equal area
    outermost: Outermost = "scales"  # in the order of a cell's anchors
    center: float = 0.5  # of a level's first cell, in strides; foreign checkpoints may have 0
    # As torchvision has them: sides truncated and corners rounded to whole pixels, and centres a canvas' side divided
    # by its cells apart, rounded down (no longer the stride where that doesn't divide the canvas).
    whole_pixels: bool = False


class Level(NamedTuple):
    """One pyramid level on a canvas; plain numbers, so that shapes derived from it are static."""

    stride: int  # px
    rows: int
    columns: int
    sides: tuple[tuple[float, float], ...]  # width, height in px of the anchors of a cell
    pitch_xy: tuple[int, int]  # px from one cell's centre to the next; the stride, but for `whole_pixels`
    center: float = 0.5  # of the first cell, in units of the pitch

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    @property
    def anchors(self) -> int:
        return self.cells * len(self.sides)


def strides(levels: int) -> list[int]:
    """Strides in px of a pyramid's levels: 8, 16, 32, …"""
    return [FIRST_STRIDE << level for level in range(levels)]


def anchors_per_cell(anchors: Anchors) -> int:
    """How many anchors each cell carries, A."""
    return anchors.scales_per_octave * len(anchors.ratios)


def anchor_sides(anchors: Anchors, stride: int) -> tuple[tuple[float, float], ...]:
    """Widths and heights in px of the anchors of a cell (RetinaNet, arXiv 1708.02002)."""
    octave = [anchors.scale * stride * 2 ** (i / anchors.scales_per_octave) for i in range(anchors.scales_per_octave)]
    match anchors.outermost:
        case "scales":
            kinds = [(side, ratio) for side in octave for ratio in anchors.ratios]
        case "ratios":
            kinds = [(side, ratio) for ratio in anchors.ratios for side in octave]
        case _:
            unknown_name(anchors.outermost, "anchors.outermost", Outermost)
    if not anchors.whole_pixels:
        return tuple((side / math.sqrt(ratio), side * math.sqrt(ratio)) for side, ratio in kinds)
    # Python's round() takes a half to the even number, as torch's does.
    whole = [(math.trunc(side), math.sqrt(ratio)) for side, ratio in kinds]
    return tuple((2.0 * round(side / root / 2), 2.0 * round(side * root / 2)) for side, root in whole)


def pitch(anchors: Anchors, stride: int, canvas_side: int, cells: int) -> int:
    """Px from one cell's centre to the next along a canvas' side with so many cells."""
    return canvas_side // cells if anchors.whole_pixels else stride


def pyramid_levels(canvas_hw: tuple[int, int], levels: int, anchors: Anchors) -> list[Level]:
    """The levels of a canvas of height, width px."""
    height, width = canvas_hw
    found = []
    for s in strides(levels):
        rows, columns = -(-height // s), -(-width // s)
        pitch_xy = pitch(anchors, s, width, columns), pitch(anchors, s, height, rows)
        found.append(Level(s, rows, columns, anchor_sides(anchors, s), pitch_xy, anchors.center))
    return found


def grid_points(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """The centres of all anchors, [N, 2] (x, y) px, float32: a cell's once for each of its anchors."""
    points = []
    for level in levels:
        x = (torch.arange(level.columns, device=device, dtype=torch.float32) + level.center) * level.pitch_xy[0]
        y = (torch.arange(level.rows, device=device, dtype=torch.float32) + level.center) * level.pitch_xy[1]
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        point = torch.stack((center_x, center_y), dim=-1).reshape(-1, 1, 2)
        points.append(point.expand(-1, len(level.sides), -1).reshape(-1, 2))
    return torch.cat(points)


def grid_anchors(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """All anchors of the levels, [N, 4] xyxy px, float32."""
    halves = [half_sides(v, device).repeat(v.cells, 1) for v in levels]
    return around(grid_points(levels, device), torch.cat(halves))


def half_sides(level: Level, device: torch.device | None) -> Tensor:
    """Half the width and height of each anchor of a cell, [A, 2] px, float32.

    Filled in on the device: a copy from the host would make the host wait for what the device is doing.
    """
    numbers = [torch.full((), side / 2, device=device) for sides in level.sides for side in sides]
    return torch.stack(numbers).reshape(-1, 2)


def around(center: Tensor, half: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy around centres [..., 2], of half the width and height [..., 2]."""
    return torch.cat((center - half, center + half), dim=-1)


def grid_strides(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """The stride of each anchor's level, [N] px, float32."""
    return torch.cat([torch.full((v.anchors,), float(v.stride), device=device) for v in levels])
