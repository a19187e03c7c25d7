"""Precision over recall at each IoU, and precision, recall and F1 over the score threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..coco import scoring
from ..coco.ground_truth import GroundTruth
from ..coco.matching import IOUS
from ..coco.results import Results
from ..detection_filter import KEEP_ALL, DetectionFilter
from .outcomes import find_outcomes
from .selection import select

THRESHOLDS = np.arange(101) / 100  # linspace's 0.57 is 0.5700000000000001, which a score of 0.57 doesn't reach


@dataclass(frozen=True)
class PrecisionRecallCurves:
    """COCO's curves, of which AP is the mean: objects of all sizes, the 100 best detections of an image and class."""

    classes: tuple[str, ...]  # [K]
    ious: np.ndarray  # [T] 0.5, 0.55 … 0.95
    recalls: np.ndarray  # [101] 0, 0.01 … 1
    precision: np.ndarray  # [T, 101, K]; −1 for a class without objects, 0 where the recall is not reached


@dataclass(frozen=True)
class F1Curve:
    """Precision, recall and their harmonic mean at each score threshold, at IoU 0.5.

    Without objects, recall and F1 are −1 everywhere.
    """

    scores: np.ndarray  # [101] thresholds 0, 0.01 … 1; a detection counts if its score is no less
    precision: np.ndarray  # [101]; −1 where no detection is left
    recall: np.ndarray  # [101]
    f1: np.ndarray  # [101]; 0 where nothing is found
    best_score: float  # any threshold, not only one of `scores`; −1 where nothing is found at any
    best_f1: float


@dataclass(frozen=True)
class F1Curves:
    """The curves of all classes together and of each."""

    total: F1Curve
    per_class: Mapping[str, F1Curve]


def precision_recall(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    kept: DetectionFilter = KEEP_ALL,
) -> PrecisionRecallCurves:
    """The curves on all images or those of `image_ids`; the filter as in `runtime.coco.score`, which this raises as."""
    selection = select(truth, image_ids, kept)
    found = scoring.precision_recall(selection.restricted, selection.known(results), image_ids)
    return PrecisionRecallCurves(selection.restricted.classes, IOUS, scoring.RECALLS, found.precision[..., 0])


def f1_curves(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    kept: DetectionFilter = KEEP_ALL,
) -> F1Curves:
    """F1 over the score threshold; images, filter and errors as in `precision_recall`.

    A detection is right or wrong as COCO's evaluation matches it. What is matched with a crowd or a region to ignore
    is neither. COCO matches the best scores first, so that a threshold takes away detections and changes no other.

    All classes together: their detections and objects are counted together, so that a frequent class weighs more.

    The best threshold is the one with the highest F1, the lowest of equal ones, written with as few digits as keep the
    same detections. It is chosen on these images; on others it is a little worse than it looks.
    """
    outcomes = find_outcomes(truth, results, image_ids, kept)
    return F1Curves(
        f1_curve(outcomes.scores, outcomes.hits, int(outcomes.objects.sum())),
        {
            name: f1_curve(*outcomes.of_class(row), int(outcomes.objects[row]))
            for row, name in enumerate(outcomes.classes)
        },
    )


def f1_curve(scores: np.ndarray, hits: np.ndarray, objects: int) -> F1Curve:
    """The curve of detections, given their scores [n], which of them are hits [n], and the number of objects."""
    order = np.argsort(-scores, kind="stable")
    falling, found = scores[order], np.cumsum(hits[order])
    kept = np.searchsorted(-falling, -THRESHOLDS, side="right")  # how many detections have no less
    right = np.concatenate([[0], found])[kept]
    precision = np.where(kept > 0, right / np.maximum(kept, 1), -1.0)
    if not objects:
        nothing = np.full(len(THRESHOLDS), -1.0)
        return F1Curve(THRESHOLDS, precision, nothing, nothing, -1.0, -1.0)
    f1 = 2 * right / (kept + objects)
    best_score, best_f1 = _best(falling, found, objects)
    return F1Curve(THRESHOLDS, precision, right / objects, f1, best_score, best_f1)


def _best(falling: np.ndarray, found: np.ndarray, objects: int) -> tuple[float, float]:
    """The best threshold and its F1, of falling scores [n] and the hits [n] down to each."""
    last = np.flatnonzero(np.diff(falling, append=-np.inf))  # of equal scores: they are kept or left together
    f1 = 2 * found[last] / (last + 1 + objects)
    if not len(last) or not f1.max() > 0:
        return -1.0, 0.0
    best = len(last) - 1 - int(np.argmax(f1[::-1]))
    below = float(falling[last[best + 1]]) if best + 1 < len(last) else -math.inf
    return _shortest(below, float(falling[last[best]])), float(f1[best])


def _shortest(low: float, high: float) -> float:
    """The number with the fewest decimal digits that is above `low` and at most `high`, the highest of them."""
    for digits in range(1, 16):
        rounded = math.floor(high * 10**digits) / 10**digits
        if low < rounded <= high:
            return rounded
    return high
