"""The detections and objects that an analysis looks at, by the rules of COCO's evaluation.

N detections that count, A annotations of the ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.format import Problems
from ..coco.ground_truth import GroundTruth
from ..coco.matching import AREAS, MOST
from ..coco.results import Results, filter_results, known_results
from ..detection_filter import DetectionFilter


@dataclass(frozen=True)
class Ranked:
    """Detections by image, those of an image by descending score; of equal scores, the first row comes first."""

    rows: np.ndarray  # int64 [N] of the results
    images: np.ndarray  # int64 [N] rows of `GroundTruth.image_ids`, rising
    labels: np.ndarray  # int64 [N] rows of `GroundTruth.category_ids`
    boxes: np.ndarray  # float64 [N, 4] x, y, width, height
    scores: np.ndarray  # float64 [N]
    areas: np.ndarray  # float64 [N] px²


def wanted_images(truth: GroundTruth, image_ids: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """Which images an analysis looks at, bool [I]; None: all."""
    return np.isin(truth.image_ids, truth.image_ids if image_ids is None else np.asarray(image_ids, np.int64))


def rank_detections(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None,
    kept: DetectionFilter,
    most: int | None = MOST[-1],
) -> Ranked:
    """The detections that the filter keeps, of known categories and of the images of `image_ids`.

    Of an image and class only the `most` best count, as in COCO's evaluation; None: all. Raises CocoError as
    `runtime.coco.score`.
    """
    categories = truth.restricted_to(kept.category_ids).category_ids
    known_results(filter_results(results, kept), truth.image_ids, categories, Problems())
    rows = np.flatnonzero(
        kept.mask(results.scores, results.category_ids)
        & np.isin(results.category_ids, categories)
        & np.isin(results.image_ids, truth.image_ids[wanted_images(truth, image_ids)])
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


def select_objects(
    truth: GroundTruth, image_ids: Sequence[int] | np.ndarray | None, kept: DetectionFilter
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (rising) of the annotations that an analysis looks at, and which of them are regions that do not count.

    A region is a crowd or a region to ignore. COCO's evaluation also ignores an object whose area is negative or above
    10¹⁰ px².
    """
    known = np.isin(truth.category_ids, truth.restricted_to(kept.category_ids).category_ids)
    rows = np.flatnonzero(wanted_images(truth, image_ids)[truth.images] & known[truth.categories])
    return rows, truth.crowd[rows] | ~in_range(truth.areas[rows])


def in_range(areas: np.ndarray) -> np.ndarray:
    """Which areas COCO's evaluation over all sizes counts, bool [n]."""
    return (areas >= AREAS[0, 0]) & (areas <= AREAS[0, 1])
