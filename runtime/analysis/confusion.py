"""Which class the detections of each object have: the confusion matrix of a detector, with the background.

First, detections are matched with objects of their class as COCO's evaluation does it: by descending score, each with
the free object that it overlaps most. So the diagonal counts COCO's own hits above the score. Then what is left is
matched across classes, the highest IoU first. supervision.ConfusionMatrix matches by IoU within a class as well, so
that a box may hit that has a worse score; and there an IoU of exactly the threshold is no match.

A detection that lies in a crowd, or in a region to ignore, of its class and is not matched otherwise does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.results import Results
from ..detection_filter import DetectionFilter
from .pairs import match_greedily, overlapping
from .ranking import rank_detections
from .selection import in_range, select


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of objects and detections; K classes of the ground truth."""

    classes: tuple[str, ...]  # [K]
    counts: np.ndarray  # int64 [K + 1, K + 1]: rows are the truth, columns the detections, the last is the background
    min_score: float
    iou: float


def confusion_matrix(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    *,
    min_score: float,
    iou: float = 0.5,
    category_ids: tuple[int, ...] | None = None,
) -> ConfusionMatrix:
    """Match the detections of `min_score` or more with the objects, on all images or on those of `image_ids`.

    A match has an IoU of at least `iou`, above 0. With `category_ids`, only results and objects of these categories
    count; the matrix has rows and columns of the others too. Raises CocoError as `runtime.coco.score`.
    """
    selection = select(truth, image_ids, DetectionFilter(min_score, category_ids))
    found = rank_detections(selection, results)
    objects, region = truth.select(selection.rows), selection.regions
    rows, gts, overlap = overlapping(found.boxes, found.images, objects.boxes, objects.images, iou, objects.crowd)
    same = found.labels[rows] == objects.categories[gts]

    order = np.lexsort((-gts, -overlap, rows))
    own = order[(same & ~region[gts])[order]]
    match = match_greedily(rows[own], gts[own], len(found.rows), len(region))
    in_region = order[(same & region[gts] & (match[rows] < 0))[order]]
    ignored = match_greedily(rows[in_region], gts[in_region], len(found.rows), len(region), objects.crowd) >= 0
    ignored |= (match < 0) & ~in_range(found.areas)

    free = ~region
    free[match[match >= 0]] = False
    left = np.flatnonzero(~same & free[gts] & (match[rows] < 0) & ~ignored[rows])
    left = left[np.lexsort((gts[left], rows[left], -overlap[left]))]
    across = match_greedily(rows[left], gts[left], len(found.rows), len(region))
    match = np.where(match >= 0, match, across)

    background = len(truth.classes)
    counts = np.zeros((background + 1, background + 1), np.int64)
    true_labels = np.append(objects.categories, background)[match]  # a match of −1 is the last one
    np.add.at(counts, (true_labels[~ignored], found.labels[~ignored]), 1)
    missed = ~region
    missed[match[match >= 0]] = False
    np.add.at(counts, (objects.categories[missed], background), 1)
    return ConfusionMatrix(truth.classes, counts, min_score, iou)
