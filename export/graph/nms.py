"""Class-wise NMS from operators of ONNX Runtime, TensorRT and TensorRT for RTX.

It has no loop, no `NonMaxSuppression` operator, and no shape that depends on data.

Greedy NMS walks the candidates from the best score down and keeps each candidate that no kept candidate suppresses.
With the strictly upper triangular matrix S (S[i, j]: i is ranked before j, same class, IoU above the threshold) that is

    keep = valid ∧ ¬(keep · S)

which has exactly one solution, because row j depends on rows before j only. Iterating the right side reaches it after
as many steps as the longest chain of candidates that decide over each other; a step without a change proves it.

The ranked candidates are taken in blocks of 256: a block is iterated alone, and then its kept rows suppress the rows
behind it. This solves the same equation from the top. It computes half of S, works on pieces that fit a processor's
cache, and only chains within a block count. In ONNX Runtime on one CPU core it takes a half (batch 1) to a third
(batch 8) of the time of one 1000 × 1000 matrix.

Letters: B images, K candidates, M ≤ K candidates that NMS ranks, n rows of a block, D detections.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_RANKED = 1000  # M: enough for 100 detections in all but crowded images; TensorRT's TopK takes at most 3840
BLOCK = 256  # a multiple of 8, the alignment of half-precision matrix multiplication on tensor cores
ITERATIONS = 12  # per block; chains of 2–8 were seen in random crowds. One more step than the chain proves the end.
# Sums of zeros and ones below 2048 are exact in half precision, and TensorRT for RTX has no float32 matrix
# multiplication for compute capability 7.5.
MASK_DTYPE = torch.float16
MIN_AREA = 1e-9  # px²; two empty boxes have IoU 0 instead of 0 / 0


class NmsOutputs(NamedTuple):
    """The detection outputs of the deployable graph (unused rows: boxes and scores 0, classes −1)."""

    num_detections: Tensor  # int32 [B, 1]
    detection_boxes: Tensor  # float32 [B, D, 4] xyxy
    detection_scores: Tensor  # float32 [B, D], best first
    detection_classes: Tensor  # int32 [B, D]
    nms_exact: Tensor  # int32 [B, 1]


def fixpoint_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    classes: Tensor,
    iou_threshold: float,
    detections: int,
    box_growth: tuple[float, float, float, float] | None = None,
) -> NmsOutputs:
    """Class-wise greedy NMS of each image, with a flag that says whether the rows are exactly greedy's.

    boxes_xyxy float32 [B, K, 4], scores float32 [B, K] (0: an unused row), classes int32 [B, K], in any order; K is a
    constant of the graph.
    A candidate is suppressed by a kept one of its class with IoU > iou_threshold and a higher score (equal scores: the
    lower index wins where the backend's TopK is stable, as ONNX Runtime's is). `box_growth` is added to boxes for the
    area that they cover.
    `nms_exact` is 1 where the iteration reached its fixpoint and either `detections` rows were found or no candidate
    was left out of the ranking; 0 asks for greedy NMS over all candidates.
    """
    candidates = (scores > 0).sum(dim=1, keepdim=True)  # [B, 1]
    boxes, scores, classes = _rank(boxes_xyxy, scores, classes, detections)
    covered = boxes if box_growth is None else boxes + torch.tensor(box_growth, device=boxes.device)
    keep, converged = _solve(covered, classes, scores > 0, iou_threshold)  # bool [B, M], [B, 1]
    kept = keep.sum(dim=1, keepdim=True)  # [B, 1]
    exact = converged & ((kept >= detections) | (candidates <= scores.shape[1]))
    rows, used = _first_kept(keep, detections)  # [B, D] each
    row_boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    return NmsOutputs(
        num_detections=kept.clamp(max=detections).to(torch.int32),
        detection_boxes=torch.where(used[..., None], row_boxes, 0.0),
        detection_scores=torch.where(used, scores.gather(1, rows), 0.0),
        detection_classes=torch.where(used, classes.gather(1, rows), -1),
        nms_exact=exact.to(torch.int32),
    )


def _rank(boxes: Tensor, scores: Tensor, classes: Tensor, at_least: int) -> tuple[Tensor, Tensor, Tensor]:
    """The M best candidates, best first: M = min(1000, K), but never below at_least (the rest is unused rows)."""
    batch, given = scores.shape
    ranked = max(min(MAX_RANKED, given), at_least)
    if ranked > given:
        boxes = torch.cat([boxes, boxes.new_zeros(batch, ranked - given, 4)], dim=1)
        scores = torch.cat([scores, scores.new_zeros(batch, ranked - given)], dim=1)
        classes = torch.cat([classes, classes.new_full((batch, ranked - given), -1)], dim=1)
    scores, order = torch.topk(scores, ranked, dim=1)
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores, classes.gather(1, order)


def _solve(boxes: Tensor, classes: Tensor, valid: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Solve keep = valid ∧ ¬(keep · S) block by block; keep bool [B, M] and whether it converged, bool [B, 1]."""
    alive = valid.to(MASK_DTYPE)[:, None, :]  # [B, 1, rows from the block's first on]
    blocks, settled = [], []
    for start in range(0, classes.shape[1], BLOCK):
        n = min(BLOCK, classes.shape[1] - start)
        overlap = _suppresses(boxes[:, start:], classes[:, start:], n, iou_threshold)  # [B, n, rows]
        above = torch.ones(n, n, dtype=torch.bool, device=boxes.device).triu(1)
        inside = (overlap[:, :, :n] & above).to(MASK_DTYPE)
        entering = alive[:, :, :n]
        keep = before = entering
        for _ in range(ITERATIONS):
            before, keep = keep, torch.relu(entering - keep @ inside)
        blocks.append(keep)
        settled.append((keep == before).all(dim=2))
        if n < alive.shape[2]:
            alive = torch.relu(alive[:, :, n:] - keep @ overlap[:, :, n:].to(MASK_DTYPE))
    return torch.cat(blocks, dim=2)[:, 0] > 0, torch.stack(settled).all(dim=0)


def _suppresses(boxes: Tensor, classes: Tensor, n: int, iou_threshold: float) -> Tensor:
    """Same class and IoU > iou_threshold, of the first n rows with all rows: bool [B, n, rows].

    The class is compared as such: moving boxes apart by class costs precision (0.06 px at 8192 · class).
    """
    x1, y1, x2, y2 = boxes[:, :n].split(1, dim=2)  # [B, n, 1] each
    u1, v1, u2, v2 = boxes.transpose(1, 2).split(1, dim=1)  # [B, 1, rows] each
    width = torch.relu(torch.minimum(x2, u2) - torch.maximum(x1, u1))
    height = torch.relu(torch.minimum(y2, v2) - torch.maximum(y1, v1))
    shared = width * height  # [B, n, rows]
    area = ((u2 - u1) * (v2 - v1)).clamp(min=MIN_AREA)
    union = area[:, :, :n].transpose(1, 2) + area - shared
    return (shared / union > iou_threshold) & (classes[:, :n, None] == classes[:, None, :])


def _first_kept(keep: Tensor, detections: int) -> tuple[Tensor, Tensor]:
    """Row numbers of the first kept rows, in order, and which of them exist: int64 and bool [B, D]."""
    # Ranked by position, not by score: all keys of kept rows differ, so every backend's TopK gives one answer.
    falling = torch.arange(keep.shape[1], 0, -1, dtype=torch.float32, device=keep.device)
    key, rows = torch.topk(torch.where(keep, falling, 0.0), detections, dim=1)
    return rows, key > 0
