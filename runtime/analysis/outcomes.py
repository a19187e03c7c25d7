"""Which detections are right and which are wrong, at one IoU, as COCO's evaluation matches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.matching import IOUS, bit
from ..coco.results import Results
from ..detection_filter import KEEP_ALL, DetectionFilter
from .selection import select


@dataclass(frozen=True)
class Outcomes:
    """The detections that count, sorted by class. Not among them: what is matched with a crowd or a region to ignore.

    K classes, n detections: of an image and class the 100 best.
    """

    classes: tuple[str, ...]  # [K]
    objects: np.ndarray  # int64 [K] that count
    labels: np.ndarray  # int64 [n] rows of `classes`, rising
    scores: np.ndarray  # float64 [n]
    hits: np.ndarray  # bool [n]

    def of_class(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and hits of a class."""
        own = slice(*np.searchsorted(self.labels, (row, row + 1)).tolist())
        return self.scores[own], self.hits[own]


def find_outcomes(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    kept: DetectionFilter = KEEP_ALL,
    iou: float = 0.5,
) -> Outcomes:
    """Match on all images or those of `image_ids`, at an IoU of COCO's (0.5, 0.55 … 0.95).

    Detections of a class without objects are wrong. The filter as in `runtime.coco.score`, which this raises as;
    ValueError for another IoU.
    """
    threshold = int(np.abs(IOUS - iou).argmin())
    if not np.isclose(IOUS[threshold], iou):
        raise ValueError(f"iou: {iou} is none of COCO's thresholds, 0.5, 0.55 … 0.95")
    selection = select(truth, image_ids, kept)
    matches = selection.matches(results, every_class=True)
    this = bit(0, threshold)
    labels, scores, hits = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, bool)]
    for row in range(len(selection.measured)):
        for part in matches.of_category(row):
            counted = part[part["ignored"] & this == 0]
            labels.append(np.full(len(counted), row))
            scores.append(counted["score"])
            hits.append(counted["matched"] & this > 0)
    objects = np.bincount(selection.objects.categories[selection.sizes[:, 0]], minlength=len(selection.measured))
    return Outcomes(
        selection.restricted.classes, objects, np.concatenate(labels), np.concatenate(scores), np.concatenate(hits)
    )
