"""The one return type of every assigner."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NEGATIVE = -1


class Assigned(NamedTuple):
    """What each anchor of a batch is trained on."""

    matched: Tensor  # int64 [B, N]: index of the anchor's box among its image's, or NEGATIVE
    ignored: Tensor | None = None  # bool [B, N]: negatives that aren't trained on; None where a method has none
