"""The detections of a selection, ranked as COCO's evaluation ranks them, for analyses that match them by other rules.

N detections that count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coco.matching import MOST
from ..coco.results import Results
from .selection import Selection


@dataclass(frozen=True)
class Ranked:
    """Detections by image, those of an image by descending score; of equal scores, the first row comes first."""

    rows: np.ndarray  # int64 [N] of the results
    images: np.ndarray  # int64 [N] rows of `GroundTruth.image_ids`, rising
    labels: np.ndarray  # int64 [N] rows of `GroundTruth.category_ids`, of the whole ground truth
    boxes: np.ndarray  # float64 [N, 4] x, y, width, height
    scores: np.ndarray  # float64 [N]
    areas: np.ndarray  # float64 [N] px²


def rank_detections(selection: Selection, results: Results, most: int | None = MOST[-1]) -> Ranked:
    """The detections that the selection's filter keeps, of known categories and of its images.

    Of an image and class only the `most` best count, as in COCO's evaluation; None: all. Raises CocoError as
    `runtime.coco.score`.
    """
    selection.known(results)  # for what it raises: here the rows of the results are needed
    truth = selection.truth
    rows = np.flatnonzero(
        selection.kept.mask(results.scores, results.category_ids)
        & np.isin(results.category_ids, selection.restricted.category_ids)
        & np.isin(results.image_ids, truth.image_ids[selection.images])
    )
    images = np.searchsorted(truth.image_ids, results.image_ids[rows])
    labels = np.searchsorted(truth.category_ids, results.category_ids[rows])
    scores = results.scores[rows]
    if most is not None:
        order = np.lexsort((-scores, labels, images))
        starts = np.flatnonzero(np.diff(images[order], prepend=-1) | np.diff(labels[order], prepend=-1))
        ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        best = np.sort(order[ranks < most])
        rows, images, labels, scores = rows[best], images[best], labels[best], scores[best]
    order = np.lexsort((-scores, images))
    rows = rows[order]
    boxes = results.boxes[rows]
    areas = boxes[:, 2] * boxes[:, 3] if results.areas is None else results.areas[rows]
    return Ranked(rows, images[order], labels[order], boxes, scores[order], areas)
