"""The gradients of a batch: forward, losses and backward, in pieces where memory asks for it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from ..assign import ignore_regions
from ..loss.criterion import Criterion, Losses, Normalizers, Targets, at_least_one, rows_of
from .compilation import CompiledCriterion
from .distributed import ALONE, World, all_reduce, no_sync


def backward(
    network: nn.Module,
    criterion: Criterion | CompiledCriterion,
    images: Tensor,
    targets: Targets,
    pieces: int,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler,
    world: World = ALONE,
    regions: Tensor | None = None,
) -> Losses:
    """Add the gradients of a batch to the parameters, and return its losses.

    `images` uint8 [B, H, W, 3] and `targets` are this process's share of the batch; they are worked through in `pieces`
    to need less memory. In `regions` [B, R, 4] xyxy px no anchor learns that it is none. The means of gradients and
    losses over the processes are those of the whole batch, whatever the number of pieces.
    """
    canvas_hw = images.shape[1], images.shape[2]
    # Assigned once for the whole share: assignment needs no outputs, and is small beside a piece's activations.
    assigned = criterion.assign(targets, canvas_hw)
    if regions is not None:
        assigned = ignore_regions(assigned, regions, criterion.grid(canvas_hw, regions.device).points)
    normalizers = None
    if pieces > 1 or world.size > 1:
        counts = all_reduce(torch.stack(criterion.normalizers(targets, canvas_hw, assigned)), world)
        # DistributedDataParallel averages what the processes divide by these counts: it divides by their number again.
        normalizers = Normalizers(*(count / world.size for count in at_least_one(Normalizers(*counts))))
    parts = []
    for piece in range(pieces):
        rows = slice(piece * len(images) // pieces, (piece + 1) * len(images) // pieces)
        with contextlib.nullcontext() if piece == pieces - 1 else no_sync(network):
            with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
                outputs = network(images[rows])
            part = Targets(*(t[rows] for t in targets))
            losses = criterion(outputs, part, canvas_hw, normalizers, rows_of(assigned, rows))
            scaler.scale(losses.total).backward()
        parts.append(torch.stack(losses).detach())
    return Losses(*torch.stack(parts).sum(dim=0))
