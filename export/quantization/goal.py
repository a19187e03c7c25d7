"""How much accuracy a quantized file may lose; `mixed.py` keeps to it."""

from __future__ import annotations

import dataclasses

from runtime.coco import CocoDataset


@dataclasses.dataclass(frozen=True)
class AccuracyGoal:
    """The AP that may be lost, and the data set that it is measured on."""

    max_ap_loss: float  # points of 100
    dataset: CocoDataset
