"""Bootstrap intervals against a slow bootstrap by pycocotools, and their empty cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.analysis import intervals
from runtime.analysis.intervals import NOT_MEASURED, Interval, ModelIntervals, bootstrap, draw_weights
from runtime.coco import METRIC_NAMES, load_ground_truth, load_results, parse_ground_truth, parse_results, score
from runtime.coco.results import empty_results
from runtime.detection_filter import DetectionFilter

from ..coco.test_coco_score import AWKWARD, by_pycocotools, make
from .test_weighted import copies


def of_models(kind: str, *seeds: int, resamples: int = 20) -> list[ModelIntervals]:
    """Models whose results are those of `seeds`, on the data set of the first seed."""
    truth = parse_ground_truth(make(kind, seeds[0])[0])
    results = [parse_results(make(kind, seed)[1], "results") for seed in seeds]
    return bootstrap(truth, results, resamples=resamples)


def test_no_models_and_no_detections() -> None:
    truth = parse_ground_truth(make("plain", 0)[0])
    assert bootstrap(truth, []) == []
    (found,) = bootstrap(truth, [empty_results()], resamples=10)
    assert found.metrics["AP"] == found.metrics["AR100"] == Interval(0.0, 0.0, 0.0)
    assert tuple(found.metrics) == METRIC_NAMES
    assert found.difference is None
    assert found.per_class_difference is None


def test_without_objects_nothing_is_measured() -> None:
    first, second = of_models("no objects", 0, 1)
    for values in (first.metrics, first.per_class, second.metrics, second.difference, second.per_class_difference):
        assert set((values or {}).values()) == {NOT_MEASURED}


def test_without_resamples_there_are_values_alone() -> None:
    (found,) = of_models("plain", 0, resamples=0)
    assert {interval.low for interval in found.metrics.values()} == {-1.0}
    assert found.metrics["AP"].value > 0
    assert found.resamples == 0


def test_few_images_have_no_bounds() -> None:
    content, results = make("one class", 0)
    truth, found = parse_ground_truth(content), parse_results(results, "results")
    with_objects = sorted({row["image_id"] for row in content["annotations"]})
    for count in (1, 4):
        (few,) = bootstrap(truth, [found], with_objects[:count], resamples=10)
        assert (few.metrics["AP"].low, few.metrics["AP"].high) == (-1.0, -1.0)
        assert few.metrics["AP"].value == score(truth, found, with_objects[:count]).values["AP"]
        assert few.per_class["c5"].low == -1.0
    (enough,) = bootstrap(truth, [found], with_objects[:5], resamples=10)
    assert enough.metrics["AP"].low > 0
    assert enough.per_class["c5"].low > 0


@pytest.mark.parametrize("kind", AWKWARD)
def test_values_are_those_of_the_score(kind: str) -> None:
    content, results = make(kind, 3)
    truth, found = parse_ground_truth(content), parse_results(results, "results")
    for ids, kept in ((None, DetectionFilter()), ([1, 8, 15, 22], DetectionFilter(0.3, (5,)))):
        expected = score(truth, found, ids, kept)
        (ours,) = bootstrap(truth, [found], ids, resamples=5, kept=kept)
        assert {name: interval.value for name, interval in ours.metrics.items()} == expected.values
        assert {name: interval.value for name, interval in ours.per_class.items()} == expected.per_class


@pytest.mark.parametrize("kind", ["plain", "crowds"])
def test_bounds_are_those_of_a_slow_bootstrap(kind: str) -> None:
    content, first = make(kind, 5)
    second = [
        {**row, "score": row["score"] ** 2 if number % 3 else row["score"] / 50} for number, row in enumerate(first)
    ]
    resamples = 12
    truth = parse_ground_truth(content)
    ours = bootstrap(truth, [parse_results(rows, "results") for rows in (first, second)], resamples=resamples, seed=3)
    weights = draw_weights(np.ones(len(truth.image_ids), bool), resamples, 3)
    drawn = np.array(
        [[by_pycocotools(*copies(content, rows, row)).stats for row in weights] for rows in (first, second)]
    )
    compared = 0
    for place, name in enumerate(METRIC_NAMES):
        for model, found in enumerate(ours):
            interval, own = found.metrics[name], drawn[model, :, place]
            if interval.low == -1:
                continue
            compared += 1
            assert (own > -1).all()
            centred = np.clip(own - own.mean() + interval.value, 0, 1)
            assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(centred, (0.025, 0.975))))
        differences = drawn[1, :, place] - drawn[0, :, place]
        interval = (ours[1].difference or {})[name]
        assert interval.value == ours[1].metrics[name].value - ours[0].metrics[name].value
        if interval.low > -1:
            assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))
    assert compared >= 16, "the other metrics have objects in few images"


def test_a_class_is_as_if_it_were_alone() -> None:
    content, results = make("plain", 6)
    truth, found = parse_ground_truth(content), parse_results(results, "results")
    (every,) = bootstrap(truth, [found], resamples=15)
    for category in content["categories"]:
        kept = DetectionFilter(category_ids=(category["id"],))
        (alone,) = bootstrap(truth, [found], resamples=15, kept=kept)
        assert alone.per_class == {category["name"]: every.per_class[category["name"]]}
        assert alone.metrics["AP"].value == alone.per_class[category["name"]].value
        assert alone.metrics["AP"].high == pytest.approx(alone.per_class[category["name"]].high)


def test_a_model_differs_from_itself_by_nothing_and_from_another_by_the_values() -> None:
    first, same, other = of_models("plain", 1, 1, 2)
    assert (same.difference or {})["AP"] == (same.difference or {})["AR1"] == Interval(0.0, 0.0, 0.0)
    assert same.metrics == first.metrics
    assert (other.difference or {})["AP"].value == other.metrics["AP"].value - first.metrics["AP"].value
    assert of_models("plain", 1)[0] == first, "another model beside it changes nothing"


def test_the_seed_names_the_draws_and_memory_bounds_them_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.array([True, False, True, True])
    weights = draw_weights(images, 50, 1)
    assert (weights.sum(axis=1) == 3).all()
    assert (weights[:, 1] == 0).all()
    assert (weights == draw_weights(images, 50, 1)).all()
    assert (weights != draw_weights(images, 50, 2)).any()
    assert draw_weights(np.zeros(4, bool), 2, 1).sum() == 0
    before = of_models("plain", 1)
    monkeypatch.setattr(intervals, "NUMBERS_AT_A_TIME", 1)
    assert of_models("plain", 1) == before


def test_on_real_results_the_value_lies_within(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "coco100"
    truth = load_ground_truth(folder / "instances_val2014_100.json")
    results = load_results(folder / "instances_val2014_fakebbox100_results.json")
    (found,) = bootstrap(truth, [results], resamples=50)
    for interval in found.metrics.values():
        assert 0 <= interval.low < interval.value < interval.high <= 1
    assert 0.02 < found.metrics["AP"].high - found.metrics["AP"].low < 0.2
