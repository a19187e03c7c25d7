"""The anchors: level l of the pyramid has stride s = 8 · 2^l and ceil(H/s) × ceil(W/s) cells.

Cell (i, j) is centred at ((j + ½)s, (i + ½)s) and has A anchors around its centre. Flat anchor indices run over the
levels, in each level over the cells row by row, and in each cell over its anchors. N is their number over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from runtime.bounds import Bounds, Fraction, Items
from runtime.names import unknown_name

FIRST_STRIDE = 8  # px
Outermost = Literal["scales", "ratios"]
Ratio = Annotated[float, Bounds(0.001, 1000)]


@dataclass(frozen=True)
class Anchors:
    """The anchors of each cell: every scale with every ratio."""

    scale: Annotated[float, Bounds(0, 1000, above=True)] = 8.0  # side of the smallest square, in strides
    scales_per_octave: Annotated[int, Bounds(1, 64)] = 1  # n > 1: sides of scale · 2^(i / n), i < n
    ratios: Annotated[tuple[Ratio, ...], Items(1, 64)] = (1.0,)  # height / width, at equal area
    outermost: Outermost = "scales"  # what changes last in the order of a cell's anchors
    center: Fraction = 0.5  # of a level's first cell, in strides; foreign checkpoints may have 0
    # As torchvision has them: sides truncated and corners rounded to whole pixels, and centres a canvas' side divided
    # by its cells apart, rounded down (no longer the stride where that doesn't divide the canvas).
    whole_pixels: bool = False


class Level(NamedTuple):
    """The anchors of one pyramid level on a canvas, as plain numbers, so that the shapes that follow are static."""

    stride: int  # px
    rows: int
    columns: int
    sides: tuple[tuple[float, float], ...]  # width and height in px of each anchor of a cell
    pitch_xy: tuple[int, int]  # px between neighbouring centres; the stride, except for `whole_pixels`
    center: float = 0.5  # of the first cell, in units of the pitch

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.rows * self.columns

    @property
    def anchors(self) -> int:
        """The number of anchors of all cells."""
        return self.cells * len(self.sides)


def strides(levels: int) -> list[int]:
    """Strides in px of a pyramid's levels: 8, 16, 32 and so on."""
    return [FIRST_STRIDE << level for level in range(levels)]


def anchors_per_cell(anchors: Anchors) -> int:
    """The number of anchors of each cell, A."""
    return anchors.scales_per_octave * len(anchors.ratios)


def anchor_sides(anchors: Anchors, stride: int) -> tuple[tuple[float, float], ...]:
    """Width and height in px of each anchor of a cell of this stride (RetinaNet, arXiv 1708.02002).

    Raises UserError for an unknown order.
    """
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
    """Px between neighbouring centres along a canvas side of `canvas_side` px with `cells` cells."""
    return canvas_side // cells if anchors.whole_pixels else stride


def pyramid_levels(canvas_hw: tuple[int, int], levels: int, anchors: Anchors) -> list[Level]:
    """The levels of a canvas of this height and width in px, finest first."""
    height, width = canvas_hw
    found = []
    for s in strides(levels):
        rows, columns = -(-height // s), -(-width // s)
        pitch_xy = pitch(anchors, s, width, columns), pitch(anchors, s, height, rows)
        found.append(Level(s, rows, columns, anchor_sides(anchors, s), pitch_xy, anchors.center))
    return found


def grid_points(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """The centre of each anchor, float32 [N, 2] (x, y) px; the anchors of a cell share theirs."""
    points = []
    for level in levels:
        x = (torch.arange(level.columns, device=device, dtype=torch.float32) + level.center) * level.pitch_xy[0]
        y = (torch.arange(level.rows, device=device, dtype=torch.float32) + level.center) * level.pitch_xy[1]
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        point = torch.stack((center_x, center_y), dim=-1).reshape(-1, 1, 2)
        points.append(point.expand(-1, len(level.sides), -1).reshape(-1, 2))
    return torch.cat(points)


class AnchorCoordinates(NamedTuple):
    """All anchors of some levels by coordinates, float32 px; each broadcasts to [1, N]."""

    x: Tensor  # of the centre
    y: Tensor
    width: Tensor
    height: Tensor
    stride: Tensor


class LevelAxes(NamedTuple):
    """A level's anchors as what each column and each row adds to (x, y, width, height, stride), float32 px.

    The axes of a smaller canvas are the first of a larger one's, unless anchors are of `whole_pixels`.
    """

    columns: Tensor  # [5, 1, columns · A]
    rows: Tensor  # [5, rows, 1]


def level_axes(level: Level, device: torch.device | None = None) -> LevelAxes:
    """The axes of a level's grid."""
    x = (torch.arange(level.columns, device=device, dtype=torch.float32) + level.center) * level.pitch_xy[0]
    y = (torch.arange(level.rows, device=device, dtype=torch.float32) + level.center) * level.pitch_xy[1]
    width, height = (half_sides(level, device) * 2).repeat(level.columns, 1).t()
    x = x.unsqueeze(1).expand(-1, len(level.sides)).flatten()
    none, nothing = torch.zeros_like(x), torch.zeros_like(y)
    columns = torch.stack([x, none, width, height, torch.full_like(x, level.stride)])
    return LevelAxes(columns.unsqueeze(1), torch.stack([nothing, y, nothing, nothing, nothing]).unsqueeze(2))


def anchor_coordinates(axes: Iterable[LevelAxes]) -> AnchorCoordinates:
    """The anchors of levels, given their axes; in the order of flat anchor indices."""
    table = torch.cat([(level.columns + level.rows).flatten(1) for level in axes], dim=1)
    return AnchorCoordinates(*table.split(1))


def grid_anchors(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """All anchors of the levels, float32 [N, 4] xyxy px."""
    return anchor_grid(levels, device).boxes


class LevelNumbers(NamedTuple):
    """The numbers of L levels as tensors, for what is computed on all levels at once."""

    pitch: Tensor  # float32 [2, L] px between neighbouring centres (x, y)
    cells: Tensor  # int64 [2, L]: columns and rows
    first: Tensor  # int64 [L]: the level's first anchor, as a flat index


class AnchorGrid(NamedTuple):
    """All anchors of a canvas as flat tensors, in the order of anchor indices, and the numbers of the levels."""

    boxes: Tensor  # float32 [N, 4] xyxy px
    points: Tensor  # float32 [N, 2], their centres (x, y) px
    strides: Tensor  # float32 [N] px
    levels: LevelNumbers


def anchor_grid(levels: list[Level], device: torch.device | None = None) -> AnchorGrid:
    """The anchors of the levels with their centres and strides, made on `device` without a copy from the host.

    This takes a hundred small operations: what needs the same grid again keeps it.
    """
    points = grid_points(levels, device)
    halves = [half_sides(v, device).repeat(v.cells, 1) for v in levels]
    boxes = around(points, torch.cat(halves))
    return AnchorGrid(boxes, points, grid_strides(levels, device), _level_numbers(levels, device))


def _level_numbers(levels: list[Level], device: torch.device | None) -> LevelNumbers:
    def row(numbers: Iterable[int], dtype: torch.dtype) -> Tensor:
        return torch.stack([torch.full((), number, dtype=dtype, device=device) for number in numbers])

    pitch = torch.stack([row((level.pitch_xy[axis] for level in levels), torch.float32) for axis in (0, 1)])
    columns = row((level.columns for level in levels), torch.int64)
    rows = row((level.rows for level in levels), torch.int64)
    first = row(accumulate((level.anchors for level in levels[:-1]), initial=0), torch.int64)
    return LevelNumbers(pitch, torch.stack((columns, rows)), first)


def half_sides(level: Level, device: torch.device | None) -> Tensor:
    """Half the width and height of each anchor of a cell, float32 [A, 2] px.

    The numbers are filled in on the device: a copy from the host would make the host wait for the device.
    """
    numbers = [torch.full((), side / 2, device=device) for sides in level.sides for side in sides]
    return torch.stack(numbers).reshape(-1, 2)


def around(center: Tensor, half: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy from centres [..., 2] and halves of width and height [..., 2]."""
    return torch.cat((center - half, center + half), dim=-1)


def grid_strides(levels: list[Level], device: torch.device | None = None) -> Tensor:
    """The stride of each anchor's level, float32 [N] px."""
    return torch.cat([torch.full((v.anchors,), float(v.stride), device=device) for v in levels])
