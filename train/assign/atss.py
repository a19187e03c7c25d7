"""Adaptive Training Sample Selection (arXiv 1912.02424, Algorithm 1), batched, without host synchronisation.

On a regular grid the k cells nearest to a point lie in a small window around the point, so no [anchors × boxes] matrix
is built: time and memory grow with boxes · levels · k. Every shape follows from the canvas and the padded number of
boxes. The threshold (lines 6-8 of the algorithm) is computed in `candidate_anchors`.

B images, G boxes of an image (padded), L levels, N anchors over all levels, A anchors of a cell,
K = Σ_l min(k, cells of l) · A candidates (Σ_l min(k, cells · A) where k counts anchors).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from runtime.names import unknown_name

from ..geometry.anchors import Level, around, half_sides
from ..geometry.boxes import centers, iou
from .types import NEGATIVE, Assigned

KCounts = Literal["cells", "anchors"]
# px: an anchor's centre lies inside a box if it is farther than this from every edge.
INSIDE_MARGIN = 0.01


def atss(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    k: int,
    k_counts: KCounts = "cells",
    center_in_box: bool = True,
) -> Assigned:
    """Assign the anchors of `levels` to boxes [B, G, 4] xyxy px; `gt_mask` bool [B, G] says which boxes are real.

    Ties in distance go to the lower anchor index, ties in IoU to the lower box index.
    """
    found = candidate_anchors(gt_boxes, levels, k, k_counts, center_in_box)
    positive = found.positive & gt_mask.unsqueeze(-1)
    return Assigned(best_box(found.anchor, found.overlap, positive, sum(level.anchors for level in levels)))


def topk(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    k: int,
    k_counts: KCounts = "cells",
    center_in_box: bool = True,
) -> Assigned:
    """As `atss`, but without a threshold: each box gets the k candidates of highest IoU."""
    found = candidate_anchors(gt_boxes, levels, k, k_counts, center_in_box)
    count = min(k, found.overlap.shape[-1])
    rank = torch.sort(found.overlap, dim=-1, descending=True, stable=True).indices[..., :count]
    chosen = torch.zeros_like(found.positive).scatter(-1, rank, True)
    positive = chosen & found.inside & gt_mask.unsqueeze(-1)
    return Assigned(best_box(found.anchor, found.overlap, positive, sum(level.anchors for level in levels)))


class CandidateAnchors(NamedTuple):
    """The candidate anchors of each box, and which of them are positive for it."""

    anchor: Tensor  # int64 [B, G, K], flat over all levels, level by level
    overlap: Tensor  # [B, G, K] IoU with the box
    threshold: Tensor  # [B, G, 1] mean plus standard deviation of the box's overlaps
    inside: Tensor  # bool [B, G, K]: the anchor's centre is in the box; all True where that isn't required
    positive: Tensor  # bool [B, G, K]


def candidate_anchors(
    gt_boxes: Tensor, levels: list[Level], k: int, k_counts: KCounts = "cells", center_in_box: bool = True
) -> CandidateAnchors:
    """Lines 1-12 of the algorithm for boxes [B, G, 4] xyxy px: candidates, their IoU, the threshold, the positives.

    An anchor may be positive for several boxes here; `best_box` chooses one.
    """
    index, joined = nearest_on_all_levels(gt_boxes, levels, k, k_counts)  # lines 3 and 4
    overlap = iou(joined, gt_boxes.unsqueeze(2))  # line 5
    threshold = _mean_plus_std(overlap)  # lines 6-8
    inside = centers_inside(joined, gt_boxes) if center_in_box else torch.ones_like(overlap, dtype=torch.bool)
    return CandidateAnchors(index, overlap, threshold, inside, (overlap >= threshold) & inside)  # lines 9-12


def nearest_on_all_levels(
    gt_boxes: Tensor, levels: list[Level], k: int, k_counts: KCounts = "cells"
) -> tuple[Tensor, Tensor]:
    """The candidates of boxes [B, G, 4], level by level: flat indices int64 [B, G, K] and anchors [B, G, K, 4]."""
    indices, centres, halves = [], [], []
    first = 0
    for level in levels:
        index, center, half = _nearest(gt_boxes, level, k, k_counts)
        indices.append(index + first)
        centres.append(center)
        halves.append(half)
        first += level.anchors
    centre = torch.cat(centres, dim=-2)
    return torch.cat(indices, dim=-1), around(centre, torch.cat(halves))


def _nearest(gt_boxes: Tensor, level: Level, k: int, k_counts: KCounts) -> tuple[Tensor, Tensor, Tensor]:
    """The anchors of one level whose centres are nearest to each box's centre (line 3), nearest first.

    These are the anchors of the min(k, cells) nearest cells, or the min(k, cells · A) nearest anchors; all anchors of a
    cell are equally near. Returns their indices in the level, int64 [B, G, n], their centres [B, G, n, 2] and halves of
    their sides [n, 2]. Exact for boxes whose centres are on the grid, as after clipping to the canvas.
    """
    per_cell = len(level.sides)
    match k_counts:
        case "cells":
            cells, most = k, None
        case "anchors":
            cells, most = math.ceil(k / per_cell), k
        case _:
            unknown_name(k_counts, "assignment.k_counts", KCounts)
    cell, center = _nearest_cells(gt_boxes, level, at_most(level.cells, cells))
    half = half_sides(level, cell.device).repeat(cell.shape[-1], 1)
    if per_cell == 1:
        return cell, center, half
    in_cell = torch.arange(per_cell, device=cell.device)
    index = (cell.unsqueeze(-1) * per_cell + in_cell).flatten(-2)  # [B, G, cells · A]
    center = center.repeat_interleave(per_cell, dim=-2)
    return index[..., :most], center[..., :most, :], half[:most]


def _nearest_cells(gt_boxes: Tensor, level: Level, k: int) -> tuple[Tensor, Tensor]:
    """The k cells of a level nearest to each box's centre: indices int64 [B, G, k] and their centres [B, G, k, 2]."""
    rows, columns = window_size(level.rows, level.columns, k)
    center = centers(gt_boxes)  # [B, G, 2]
    pitch_x, pitch_y = level.pitch_xy
    column = _window(center[..., 0], pitch_x, level.center, level.columns, columns)  # [B, G, columns]
    row = _window(center[..., 1], pitch_y, level.center, level.rows, rows)  # [B, G, rows]
    x = (column + level.center) * pitch_x
    y = (row + level.center) * pitch_y
    dx = x - center[..., 0:1]
    dy = y - center[..., 1:2]
    distance = (dx.square().unsqueeze(-2) + dy.square().unsqueeze(-1)).flatten(-2)  # [B, G, rows · columns]
    nearest = _smallest(distance, k)  # the window is in row-major order: ties stay in the order of anchor indices
    in_row = nearest // columns
    in_column = nearest - in_row * columns
    index = row.gather(-1, in_row) * level.columns + column.gather(-1, in_column)
    return index, torch.stack((x.gather(-1, in_column), y.gather(-1, in_row)), dim=-1)


def _smallest(values: Tensor, k: int) -> Tensor:
    """Indices int64 [..., k] of the k smallest of float32 `values` ≥ 0 [..., n], rising; of equal ones the lowest."""
    # The bits of non-negative floats, read as integers, sort like the floats. With the index in the lower bits no two
    # keys are equal, so topk gives the order of a stable sort in less time.
    bits = values.shape[-1].bit_length()
    keys = (values.view(torch.int32).long() << bits) | torch.arange(values.shape[-1], device=values.device)
    return keys.topk(k, dim=-1, largest=False).values & ((1 << bits) - 1)


def window_size(rows: int, columns: int, k: int) -> tuple[int, int]:
    """Height and width in cells of a window that contains the k cells nearest to any point of the grid, ties included.

    A square of side 2·ceil(√k) − 1 around the point's cell is enough where the grid is that wide. On a narrower grid
    the other side is longer: k cells fill k / width rows, and one more row on each side covers a point off the cell's
    centre and a tie.
    """
    side = max(3, 2 * math.ceil(math.sqrt(k)) - 1)
    height = max(side, math.ceil(k / at_most(columns, side)) + 2)
    width = max(side, math.ceil(k / at_most(rows, side)) + 2)
    return at_most(rows, height | 1), at_most(columns, width | 1)


def at_most(size: int, limit: int) -> int:
    """min(size, limit), also of a size that is unknown while torch.compile traces.

    The comparisons become conditions of the compiled graph, so the result is a plain number and what it shapes static.
    """
    if size >= limit:
        return limit
    return next((number for number in range(limit) if size == number), size)


def _window(center: Tensor, pitch: int, first: float, cells: int, size: int) -> Tensor:
    """Indices int64 [B, G, size] of the cells around `center` px [B, G] on one axis, shifted so as to be on the grid.

    The first cell's centre is at `first` · `pitch` px.
    """
    # Of two cells at the same distance the lower counts as nearest: the window contains the cells that win ties.
    nearest = (torch.ceil(center / pitch + (0.5 - first)) - 1).clamp(0, cells - 1).long()
    start = (nearest - size // 2).clamp(0, cells - size)
    return start.unsqueeze(-1) + torch.arange(size, device=center.device)


def _mean_plus_std(overlap: Tensor) -> Tensor:
    """Mean plus sample standard deviation (n − 1) over the candidates, [B, G, 1]; of a single candidate the mean."""
    mean = overlap.mean(dim=-1, keepdim=True)
    if overlap.shape[-1] < 2 or overlap.numel() == 0:  # torch warns of a deviation over no values, even without boxes
        return mean
    return mean + overlap.std(dim=-1, keepdim=True)


def centers_inside(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Whether the centres of anchors [B, G, K, 4] lie inside their boxes [B, G, 4]: bool [B, G, K]."""
    center = centers(anchors)
    low = center - gt_boxes[..., :2].unsqueeze(-2)
    high = gt_boxes[..., 2:].unsqueeze(-2) - center
    nearest_x, nearest_y = torch.minimum(low, high).unbind(dim=-1)  # sides
    return torch.minimum(nearest_x, nearest_y) > INSIDE_MARGIN


def best_box(index: Tensor, score: Tensor, positive: Tensor, anchors_total: int) -> Tensor:
    """Assign each anchor that is positive for several boxes to the box of highest score: int64 [B, N] of box indices.

    `index` (int64, of anchors), `score` and `positive` (bool) are [B, G, K]. Of equal scores the lowest box index wins.
    Anchors that are positive for no box get NEGATIVE.
    """
    batch, boxes, _ = index.shape
    anchor = index.flatten(1)  # [B, G · K]
    score = torch.where(positive, score, -math.inf).flatten(1)
    best = score.new_full((batch, anchors_total), -math.inf).scatter_reduce_(1, anchor, score, "amax")
    wins = positive.flatten(1) & (score == best.gather(1, anchor))
    # Box indices are reversed here, so that the maximum is the lowest index and above NEGATIVE. The last step writes at
    # the candidates alone, since a pass over all anchors would take longer than everything else.
    number = (boxes - 1 - torch.arange(boxes, device=index.device)).unsqueeze(1).expand(index.shape[1:]).flatten()
    matched = torch.full((batch, anchors_total), NEGATIVE, device=index.device)
    matched.scatter_reduce_(1, anchor, torch.where(wins, number, NEGATIVE), "amax")
    found = matched.gather(1, anchor)
    return matched.scatter_(1, anchor, torch.where(found == NEGATIVE, NEGATIVE, boxes - 1 - found))
