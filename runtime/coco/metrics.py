"""COCO's twelve metrics of results against ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..detection_filter import KEEP_ALL, DetectionFilter
from . import scoring
from .format import Problems
from .ground_truth import GroundTruth
from .results import Results, filter_results, known_results

NOTHING = "nothing to measure: no object that counts in these images (crowds and regions to ignore do not count)"


@dataclass(frozen=True)
class CocoMetrics:
    """Values in 0–1; −1 where the data set has no object to measure on (COCO's own convention)."""

    values: dict[str, float]  # by METRIC_NAMES
    per_class: dict[str, float]  # AP by class name
    images: int  # how many were scored
    problems: tuple[str, ...] = ()  # results that were left out, one line per kind


def is_measured(values: Mapping[str, float]) -> bool:
    """Whether there was an object to measure on; `values` are those of CocoMetrics."""
    return values["AP"] >= 0


def score(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | None = None,
    kept: DetectionFilter = KEEP_ALL,
) -> CocoMetrics:
    """Score results against ground truth, on all images or on those of `image_ids`.

    Only results that the filter keeps count; its categories restrict the ground truth too.

    No results at all give 0. Results of categories that the ground truth lacks are left out and named in `problems`.
    Raises CocoError for results of unknown images, or where all results are of unknown categories.
    """
    truth, problems = truth.restricted_to(kept.category_ids), Problems()
    known = known_results(filter_results(results, kept), truth.image_ids, truth.category_ids, problems)
    found = scoring.precision_recall(truth, known, image_ids)
    per_class = [scoring.mean_of_measured(found.precision[:, :, k, 0]) for k in range(len(truth.classes))]
    return CocoMetrics(
        values=scoring.metric_values(found),
        per_class=dict(zip(truth.classes, per_class, strict=True)),
        images=len(truth.image_ids) if image_ids is None else len({int(value) for value in image_ids}),
        problems=(*results.problems, *problems.lines()),
    )
