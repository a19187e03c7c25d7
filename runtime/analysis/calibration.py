"""How often detections of a score are right: reliability, the expected calibration error, and histograms of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.results import Results
from ..detection_filter import KEEP_ALL, DetectionFilter
from .outcomes import find_outcomes

BINS = 20


@dataclass(frozen=True)
class Calibration:
    """Detections by their score, in bins of equal width from 0 to 1.

    A score of an edge belongs to the bin above it, except 1; scores below 0 or above 1 belong to the first or last bin.
    """

    edges: np.ndarray  # [N + 1]
    hits: np.ndarray  # int64 [N], right detections
    misses: np.ndarray  # int64 [N], wrong detections
    confidence: np.ndarray  # [N] mean score; −1 for an empty bin
    precision: np.ndarray  # [N] share of right detections; −1 for an empty bin
    error: float  # expected calibration error, 0–1; −1 without detections

    @property
    def counts(self) -> np.ndarray:
        """All detections, int64 [N]."""
        return self.hits + self.misses


def calibration(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    kept: DetectionFilter = KEEP_ALL,
    *,
    iou: float = 0.5,
    bins: int = BINS,
) -> Calibration:
    """The calibration on all images or those of `image_ids`, of all classes together.

    The expected calibration error is the mean of |confidence − precision| over bins, weighted by their detections (Guo
    et al., arXiv 1706.04599; for detectors, with precision, Küppers et al., arXiv 2004.13546). It depends on which
    detections there are: many of low scores, mostly background, weigh more than the few that matter; a filter's
    `min_score` leaves them out. Objects that are missed do not enter. Images, filter, matching and errors as in
    `outcomes.find_outcomes`.
    """
    outcomes = find_outcomes(truth, results, image_ids, kept, iou)
    scores, hits = outcomes.scores, outcomes.hits
    edges = np.arange(bins + 1) / bins  # linspace's 0.3 is 0.30000000000000004, and a score of 0.3 would be below it
    rows = np.searchsorted(edges, scores, side="right").clip(1, bins) - 1
    counts = np.bincount(rows, minlength=bins)
    right = np.bincount(rows[hits], minlength=bins)
    filled = np.maximum(counts, 1)
    confidence = np.where(counts > 0, np.bincount(rows, scores, minlength=bins) / filled, -1.0)
    precision = np.where(counts > 0, right / filled, -1.0)
    total = int(counts.sum())
    error = float((counts * np.abs(confidence - precision)).sum() / total) if total else -1.0
    return Calibration(edges, right, counts - right, confidence, precision, error)
