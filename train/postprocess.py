"""From dense outputs to candidates for NMS: threshold, rank, top 1000 per level, decode only those, clip.

The same function serves validation while training and the exported graph, so every shape follows from the canvas; with
`limits` the number of candidates is a constant even where the canvas is not.
B images, C classes, K candidates over all levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.manifest import Thresholds

from . import config
from .anchors import strides
from .boxes import decode_deltas
from .detector import DenseOutputs


class Limit(NamedTuple):
    """How many candidates a level yields where its size isn't known beforehand."""

    candidates: int
    padded: bool  # the level may have fewer scores than that on some canvas; unused rows fill up


def candidates(
    outputs: DenseOutputs,
    image_sizes: Tensor,
    anchors: config.Anchors,
    thresholds: Thresholds,
    limits: list[Limit] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best boxes of each level, joined: boxes [B, K, 4] xyxy canvas px, scores [B, K], classes int32 [B, K].

    A class score must exceed the threshold; the ranking is by the final score √(class · centerness). Boxes are clipped
    to `image_sizes` int32 [B, 2] (height, width). Unused rows have score 0, class −1 and box 0. Without `limits`,
    K = Σ_l min(1000, cells · C).
    """
    found = []
    for level, stride in enumerate(strides(len(outputs.class_logits))):
        found.append(
            _level_candidates(
                outputs.class_logits[level],
                outputs.box_regression[level],
                outputs.centerness[level],
                stride,
                anchors,
                thresholds,
                limits[level] if limits is not None else None,
            )
        )
    boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return _clip(boxes, image_sizes), scores, classes


def _level_candidates(
    class_logits: Tensor,
    box_regression: Tensor,
    centerness: Tensor,
    stride: int,
    anchors: config.Anchors,
    thresholds: Thresholds,
    limit: Limit | None,
) -> tuple[Tensor, Tensor, Tensor]:
    num_classes = class_logits.shape[1]
    columns = class_logits.shape[3]
    class_score = _rows(class_logits).sigmoid()  # [B, cells, C]
    score = (class_score * _rows(centerness).sigmoid()).sqrt()
    score = torch.where(class_score > thresholds.score, score, 0.0).flatten(1)  # [B, cells · C]
    if limit is None:
        count = min(thresholds.candidates_per_level, score.shape[1])
    else:
        count = limit.candidates
        if limit.padded:
            score = F.pad(score, (0, count))
    best, index = score.topk(count, dim=1)
    # Integer division: the floor mode of torch.div goes through float32 and is wrong above 2^24.
    cell = index // num_classes
    label = index - cell * num_classes
    if limit is not None and limit.padded:
        cell = cell.clamp(max=class_score.shape[1] - 1)
    deltas = _rows(box_regression).gather(1, cell.unsqueeze(-1).expand(-1, -1, 4))
    row = cell // columns
    center = (torch.stack((cell - row * columns, row), dim=-1).float() + 0.5) * stride
    half = anchors.scale * stride / 2
    boxes = decode_deltas(torch.cat((center - half, center + half), dim=-1), deltas, anchors.delta_std)
    used = best > 0
    return torch.where(used.unsqueeze(-1), boxes, 0.0), best, torch.where(used, label, -1).int()


def _rows(maps: Tensor) -> Tensor:
    """[B, C, h, w] → float32 [B, h · w, C]: half precision ends here."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).float()


def _clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes [B, K, 4] clipped to pictures of `image_sizes` [B, 2] (height, width)."""
    bound = image_sizes.flip(-1).repeat(1, 2).unsqueeze(1).to(boxes.dtype)  # [B, 1, 4]: width, height, width, height
    return torch.minimum(boxes.clamp(min=0), bound)
