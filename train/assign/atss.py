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

from ..geometry.anchors import AnchorGrid, Level, LevelNumbers, anchor_grid
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
    grid: AnchorGrid | None = None,
) -> Assigned:
    """Assign the anchors of `levels` to boxes [B, G, 4] xyxy px; `gt_mask` bool [B, G] says which boxes are real.

    Ties in distance go to the lower anchor index, ties in IoU to the lower box index.
    """
    found = candidate_anchors(gt_boxes, levels, k, k_counts, center_in_box, grid)
    positive = found.positive & gt_mask.unsqueeze(-1)
    return Assigned(best_box(found.anchor, found.overlap, positive, sum(level.anchors for level in levels)))


def topk(
    gt_boxes: Tensor,
    gt_mask: Tensor,
    levels: list[Level],
    k: int,
    k_counts: KCounts = "cells",
    center_in_box: bool = True,
    grid: AnchorGrid | None = None,
) -> Assigned:
    """As `atss`, but without a threshold: each box gets the k candidates of highest IoU."""
    found = candidate_anchors(gt_boxes, levels, k, k_counts, center_in_box, grid)
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
    gt_boxes: Tensor,
    levels: list[Level],
    k: int,
    k_counts: KCounts = "cells",
    center_in_box: bool = True,
    grid: AnchorGrid | None = None,
) -> CandidateAnchors:
    """Lines 1-12 of the algorithm for boxes [B, G, 4] xyxy px: candidates, their IoU, the threshold, the positives.

    An anchor may be positive for several boxes here; `best_box` chooses one.
    """
    index, joined = nearest_on_all_levels(gt_boxes, levels, k, k_counts, grid)  # lines 3 and 4
    overlap = iou(joined, gt_boxes.unsqueeze(2))  # line 5
    threshold = _mean_plus_std(overlap)  # lines 6-8
    inside = centers_inside(joined, gt_boxes) if center_in_box else torch.ones_like(overlap, dtype=torch.bool)
    return CandidateAnchors(index, overlap, threshold, inside, (overlap >= threshold) & inside)  # lines 9-12


def nearest_on_all_levels(
    gt_boxes: Tensor, levels: list[Level], k: int, k_counts: KCounts = "cells", grid: AnchorGrid | None = None
) -> tuple[Tensor, Tensor]:
    """The anchors of each level whose centres are nearest to each box's centre (lines 3 and 4), nearest first.

    These are the anchors of the min(k, cells) nearest cells, or the min(k, cells · A) nearest anchors; all anchors of a
    cell are equally near. Returns flat indices int64 [B, G, K], level by level, and the anchors [B, G, K, 4]. Exact for
    boxes [B, G, 4] whose centres are on the grid, as after clipping to the canvas. `grid` has the anchors of `levels`
    where they were made before.
    """
    grid = anchor_grid(levels, gt_boxes.device) if grid is None else grid
    center = centers(gt_boxes).unsqueeze(-1)  # [B, G, 2, 1]
    # Neighbouring levels with windows of one size are searched together; on a large canvas these are all levels.
    searches: list[_Search] = []
    counts: list[int] = []  # of each search the levels
    for level in levels:
        search = _search(level, k, k_counts)
        if searches and searches[-1] == search:
            counts[-1] += 1
        else:
            searches.append(search)
            counts.append(1)
    parts = zip(*(numbers.split(counts, dim=-1) for numbers in grid.levels), strict=True)
    found = [_nearest(center, LevelNumbers(*part), search) for part, search in zip(parts, searches, strict=True)]
    index = torch.cat(found, dim=-1) if len(found) > 1 else found[0]
    return index, grid.boxes[index]


class _Search(NamedTuple):
    """How the anchors that are nearest to a point are found on a level."""

    rows: int  # of the window
    columns: int
    cells: int  # how many of the window's cells are wanted
    per_cell: int  # anchors of a cell, A
    most: int | None  # how many anchors are wanted, where that isn't all of the cells'
    first_center: float  # of the first cell, in units of the pitch


def _search(level: Level, k: int, k_counts: KCounts) -> _Search:
    per_cell = len(level.sides)
    match k_counts:
        case "cells":
            cells, most = k, None
        case "anchors":
            cells, most = math.ceil(k / per_cell), k
        case _:
            unknown_name(k_counts, "assignment.k_counts", KCounts)
    cells = at_most(level.cells, cells)
    return _Search(*window_size(level.rows, level.columns, cells), cells, per_cell, most, level.center)


def _nearest(center: Tensor, numbers: LevelNumbers, search: _Search) -> Tensor:
    """Flat indices int64 [B, G, n] of the anchors nearest to `center` px [B, G, 2, 1], on levels of one search."""
    # Of two cells at the same distance the lower counts as nearest: the window contains the cells that win ties.
    nearest = (torch.ceil(center / numbers.pitch + (0.5 - search.first_center)) - 1).long()  # [B, G, 2, L]
    left, x = _window(nearest[:, :, 0], numbers.pitch[0], numbers.cells[0], search.columns, search.first_center)
    top, y = _window(nearest[:, :, 1], numbers.pitch[1], numbers.cells[1], search.rows, search.first_center)
    dx = (x - center[:, :, :1]).square()  # [B, G, L, columns]
    dy = (y - center[:, :, 1:]).square()  # [B, G, L, rows]
    distance = (dx.unsqueeze(-2) + dy.unsqueeze(-1)).flatten(-2)  # [B, G, L, rows · columns]
    in_window = _smallest(distance, search.cells)  # in row-major order: ties stay in the order of anchor indices
    columns = numbers.cells[0].unsqueeze(-1)
    beside = columns - search.columns  # cells of a row that are not in the window
    cell = top * columns + left + in_window + in_window // search.columns * beside  # [B, G, L, cells]
    if search.per_cell > 1:
        in_cell = torch.arange(search.per_cell, device=center.device)
        cell = (cell.unsqueeze(-1) * search.per_cell + in_cell).flatten(-2)[..., : search.most]
    return (cell + numbers.first.unsqueeze(-1)).flatten(-2)


def _smallest(values: Tensor, k: int) -> Tensor:
    """Indices int64 [..., k] of the k smallest of float32 `values` ≥ 0 [..., n], rising; of equal ones the lowest."""
    # The bits of non-negative floats, read as integers, sort like the floats. With the index in the lower bits no two
    # keys are equal, so topk gives the order of a stable sort in less time.
    bits = values.shape[-1].bit_length()
    keys = torch.add(torch.arange(values.shape[-1], device=values.device), values.view(torch.int32), alpha=1 << bits)
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


def _window(nearest: Tensor, pitch: Tensor, cells: Tensor, size: int, first_center: float) -> tuple[Tensor, Tensor]:
    """A window of `size` cells around the `nearest` int64 [B, G, L] on one axis, shifted so as to be on the grid.

    `pitch` and `cells` are the levels' [L]. Returns the window's first cell int64 [B, G, L, 1] and the centres of its
    cells [B, G, L, size] px.
    """
    start = torch.minimum((nearest - size // 2).clamp(min=0), cells - size).unsqueeze(-1)
    return start, (start + torch.arange(size, device=nearest.device) + first_center) * pitch.unsqueeze(-1)


def _mean_plus_std(overlap: Tensor) -> Tensor:
    """Mean plus sample standard deviation (n − 1) over the candidates, [B, G, 1]; of a single candidate the mean."""
    mean = overlap.mean(dim=-1, keepdim=True)
    if overlap.shape[-1] < 2 or overlap.numel() == 0:  # torch warns of a deviation over no values, even without boxes
        return mean
    return mean + overlap.std(dim=-1, keepdim=True)


def centers_inside(anchors: Tensor, gt_boxes: Tensor) -> Tensor:
    """Whether the centres of anchors [B, G, K, 4] lie inside their boxes [B, G, 4]: bool [B, G, K]."""
    center = centers(anchors)
    left_top, right_bottom = gt_boxes.unsqueeze(-2).split(2, dim=-1)
    nearest_x, nearest_y = torch.minimum(center - left_top, right_bottom - center).unbind(dim=-1)  # sides
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
    wins = positive & (score == best.gather(1, anchor)).view_as(positive)
    # Box indices are reversed here, so that the maximum is the lowest index and above NEGATIVE. The last step writes at
    # the candidates alone, since a pass over all anchors would take longer than everything else.
    number = (boxes - 1 - torch.arange(boxes, device=index.device)).unsqueeze(1)  # [G, 1]
    matched = torch.full((batch, anchors_total), NEGATIVE, device=index.device)
    matched.scatter_reduce_(1, anchor, torch.where(wins, number, NEGATIVE).flatten(1), "amax")
    found = matched.gather(1, anchor)
    return matched.scatter_(1, anchor, torch.where(found == NEGATIVE, NEGATIVE, boxes - 1 - found))
