"""Element-wise losses, in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss_sum(
    logits: Tensor, target_class: Tensor, alpha: float, gamma: float, ignored: Tensor | None = None
) -> Tensor:
    """Sigmoid focal loss, summed over anchors and classes (arXiv 1708.02002, eq. 5).

    `logits` are [..., C]. `target_class`, int64 [...], is the class of a positive, −1 for a negative. `ignored`, bool
    [...], marks negatives without a loss. No one-hot target is built: every entry first counts as a negative, then the
    term of each positive's own class is exchanged.
    """
    positive = target_class >= 0
    as_negative = _negative_term(logits, alpha, gamma)
    if ignored is not None:
        as_negative = torch.where(ignored.unsqueeze(-1), 0.0, as_negative)
    own = logits.gather(-1, target_class.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    # FL(x | positive) is FL(−x | negative) with alpha and 1 − alpha exchanged.
    exchange = _negative_term(-own, 1 - alpha, gamma) - _negative_term(own, alpha, gamma)
    return as_negative.sum() + torch.where(positive, exchange, 0.0).sum()


def _negative_term(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """(1 − α) · σ(x)^γ · −log(1 − σ(x))."""
    return (1 - alpha) * torch.sigmoid(logits).pow(gamma) * F.softplus(logits)
