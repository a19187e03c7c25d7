"""The return type of every assigner."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NEGATIVE = -1


class Assigned(NamedTuple):
    """The box that each anchor of a batch is trained on."""

    matched: Tensor  # int64 [B, N]: index of the anchor's box in its image, or NEGATIVE
    ignored: Tensor | None = None  # bool [B, N]: negatives without a loss; None where a method ignores none
