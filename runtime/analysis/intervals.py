"""Intervals of COCO's metrics by a bootstrap over images, and of the differences between models.

The images of a data set are drawn again and again with replacement, as many as there are, and the metrics are computed
on each draw (Efron and Tibshirani, An Introduction to the Bootstrap, 1993). The interval of a difference holds the
middle 95 % of its draws. Several models are scored on the same draws: what is hard for all cancels in a difference.

AP is higher on few objects than on many, since COCO takes the highest precision from each recall on; drawing images
twice raises it once more. With many rare classes this is more than the spread. The interval of a metric is therefore
that of its draws, moved so that their mean is the metric's value. It tells what other images of the same kind and
number would give, which for AP is more than endless images would. `benchmarks/interval_coverage.py` measures how often
intervals cover either.

An interval knows nothing of another training run with another seed, of errors in the annotations, or of images of
another kind. Images must be independent: frames of one video are not, and their intervals are too narrow. Objects are
not drawn by themselves, since those of an image depend on one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.matching import MOST
from ..coco.metrics import score
from ..coco.results import Results
from ..coco.scoring import METRIC_NAMES
from ..detection_filter import KEEP_ALL, DetectionFilter
from .selection import select
from .weighted import CategoryMatches, sort_matches, weighted_precision_recall

COVERED = 0.95
FEWEST_IMAGES = 5  # with objects to measure on: of fewer, the draws are too alike to say anything
RESAMPLES = 1000
NUMBERS_AT_A_TIME = 1 << 20  # weights of a category's rows that memory holds, in several forms

_AREA_OF = {name: 1 + "sml".index(name[-1]) if name[-1] in "sml" else 0 for name in METRIC_NAMES}


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 95 % interval.

    `value` is −1 where the data set has no object to measure on. `low` and `high` are −1 there too, and where fewer
    than five images have such an object.
    """

    value: float
    low: float
    high: float


NOT_MEASURED = Interval(-1.0, -1.0, -1.0)


@dataclass(frozen=True)
class ModelIntervals:
    """The metrics of one model, 0–1.

    A difference is this model's value minus the first model's. It is not measured, or has no interval, exactly where
    the metric itself is or has not: look there, since a difference can be −1.
    """

    metrics: dict[str, Interval]  # by METRIC_NAMES
    per_class: dict[str, Interval]  # AP by class name
    difference: dict[str, Interval] | None  # by METRIC_NAMES; None for the first model
    per_class_difference: dict[str, Interval] | None
    resamples: int


def bootstrap(
    truth: GroundTruth,
    results: Sequence[Results],
    image_ids: Sequence[int] | np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    kept: DetectionFilter = KEEP_ALL,
) -> list[ModelIntervals]:
    """Intervals of every model's metrics on all images or those of `image_ids`; the same `seed` gives the same draws.

    The values are those of `runtime.coco.score`, which this raises as. Without resamples, the bounds are −1.
    """
    if not results:
        return []
    selection = select(truth, image_ids, kept)
    scores = [score(truth, found, None if image_ids is None else list(image_ids), kept) for found in results]
    weights = draw_weights(selection.images, resamples, seed)
    matches = [selection.matches(found) for found in results]
    sums = np.zeros((len(results), resamples, len(METRIC_NAMES)))
    counts = np.zeros((resamples, len(METRIC_NAMES)), np.int64)  # classes that have an object in the resample
    no_class = dict.fromkeys(selection.restricted.classes, NOT_MEASURED)
    per_class, per_class_difference = [dict(no_class) for _ in results], [dict(no_class) for _ in results]
    for category in np.flatnonzero(selection.measured).tolist():
        own = selection.objects.categories == category
        images, sizes = selection.objects.images[own], selection.sizes[own]
        drawn = np.stack([_draws(sort_matches(found, category, images, sizes), weights) for found in matches])
        is_measured = drawn[0] > -1  # the same for all models
        sums += np.where(is_measured, drawn, 0.0)
        counts += is_measured
        name = selection.restricted.classes[category]
        pairs = _intervals(
            [found.per_class[name] for found in scores],
            drawn[:, is_measured[:, 0], 0],
            len(np.unique(images[sizes[:, 0]])),
        )
        for model, (interval, difference) in enumerate(pairs):
            per_class[model][name], per_class_difference[model][name] = interval, difference
    metrics: list[dict[str, Interval]] = [{} for _ in results]
    differences: list[dict[str, Interval]] = [{} for _ in results]
    for place, name in enumerate(METRIC_NAMES):
        count = counts[:, place]
        drawn = sums[:, count > 0, place] / count[count > 0]
        images = selection.objects.images[selection.sizes[:, _AREA_OF[name]]]
        pairs = _intervals([found.values[name] for found in scores], drawn, len(np.unique(images)))
        for model, (interval, difference) in enumerate(pairs):
            metrics[model][name], differences[model][name] = interval, difference
    return [
        ModelIntervals(
            metrics[model],
            per_class[model],
            differences[model] if model else None,
            per_class_difference[model] if model else None,
            resamples,
        )
        for model in range(len(results))
    ]


def draw_weights(images: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each resample, uint8 [resamples, I]; only images whose mask is true."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(images)
    weights = np.zeros((resamples, len(images)), np.uint8)  # an image is not drawn 256 times of n in any lifetime
    if len(rows):
        for resample in weights:
            resample[rows] = np.bincount(rng.integers(0, len(rows), len(rows)), minlength=len(rows))
    return weights


def _intervals(values: Sequence[float], drawn: np.ndarray, images: int) -> Iterator[tuple[Interval, Interval]]:
    """By model: the interval of a metric, and that of its difference to the first model.

    `values` are the models' own, `drawn` [models, n] those of the resamples that have an object to measure on, and
    `images` counts the images that have one.
    """
    for value, own in zip(values, drawn, strict=True):
        if value < 0:
            yield NOT_MEASURED, NOT_MEASURED
        else:
            centred = (own + (value - own.mean())).clip(0, 1) if len(own) else own
            yield _interval(value, centred, images), _interval(value - values[0], own - drawn[0], images)


def _interval(value: float, drawn: np.ndarray, images: int) -> Interval:
    if images < FEWEST_IMAGES or not len(drawn):
        return Interval(value, -1.0, -1.0)
    low, high = np.quantile(drawn, ((1 - COVERED) / 2, (1 + COVERED) / 2)).tolist()
    return Interval(value, low, high)


def _draws(found: CategoryMatches, weights: np.ndarray) -> np.ndarray:
    """A category's metrics in each resample, [resamples, metrics]; −1 where none of its objects was drawn."""
    at_a_time = max(1, NUMBERS_AT_A_TIME // found.size)
    parts = [np.empty((0, len(METRIC_NAMES)))]
    for first in range(0, len(weights), at_a_time):
        precision, recall = weighted_precision_recall(found, weights[first : first + at_a_time])
        values = (
            precision[..., 0].mean(axis=(1, 2)),
            precision[:, 0, :, 0].mean(axis=1),  # IoU 0.5
            precision[:, 5, :, 0].mean(axis=1),  # IoU 0.75
            *(precision[..., area].mean(axis=(1, 2)) for area in (1, 2, 3)),
            *(recall[:, :, 0, most].mean(axis=1) for most in range(len(MOST))),
            *(recall[:, :, area, -1].mean(axis=1) for area in (1, 2, 3)),
        )
        parts.append(np.stack(values, axis=1))
    return np.concatenate(parts)
