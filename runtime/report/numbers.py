"""The numbers of a report's charts as rows of tables, for readers who can't see a chart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .charts import RECALLS, mean_precision
from .content import PrecisionCurves, Reliability, ScoreCurve

STEPS = np.linspace(0, 1, 11)  # of recall, and of the score threshold


def precision_rows(models: Sequence[PrecisionCurves | None], iou: float) -> list[list[str]]:
    """Recall, and mean precision of the classes of each model; a dash for a model without curves."""
    means = [None if curves is None else mean_precision(curves, iou) for curves in models]
    places = [int(np.argmin(np.abs(RECALLS - step))) for step in STEPS]
    return [[f"{RECALLS[at]:.1f}", *("–" if mean is None else f"{mean[at]:.3f}" for mean in means)] for at in places]


def threshold_rows(curve: ScoreCurve) -> list[list[str]]:
    """Score threshold, F1, precision and recall; a dash where no detection is left."""
    scores = np.asarray(curve.scores, float)
    rows = []
    for step in STEPS:
        at = int(np.argmin(np.abs(scores - step)))
        figures = (curve.f1[at], curve.precision[at], curve.recall[at])
        rows.append([f"{scores[at]:.2f}", *("–" if value < 0 else f"{value:.3f}" for value in figures)])
    return rows


def reliability_rows(found: Reliability) -> list[list[str]]:
    """The scores of a bin, its right and its wrong detections, and the share of right ones."""
    bins = zip(found.edges[:-1], found.edges[1:], found.hits, found.misses, found.precision, strict=True)
    return [
        [f"{low:.2f}–{high:.2f}", f"{hits:,}", f"{misses:,}", "–" if share < 0 else f"{share:.3f}"]
        for low, high, hits, misses, share in bins
    ]
