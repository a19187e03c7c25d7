"""Intervals cover the true value about as often as they say, on data sets whose AP is known."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.interval_coverage import better, measure, share
from benchmarks.known_ap import Population, draw
from runtime.analysis.intervals import Interval, bootstrap
from runtime.coco import score

ONE_CLASS = Population(classes=1, objects=2.0)


def test_the_known_ap_is_that_of_many_images() -> None:
    """The standard deviation of AP on 4000 images is 0.005."""
    pair = (ONE_CLASS, better(ONE_CLASS))
    drawn = draw(pair, 4000, 1)
    true = [population.true_ap(20_000) for population in pair]
    values = [score(drawn.truth, results).values["AP"] for results in drawn.results]
    assert values == pytest.approx(true, abs=0.015)
    assert true[1] - true[0] == pytest.approx(values[1] - values[0], abs=0.01)
    assert true[1] - true[0] > 0.03


def test_a_perfect_detector_has_an_ap_of_one() -> None:
    perfect = dataclasses.replace(ONE_CLASS, found=(1.0, 1.0), wrong=(0.0, 0.0), quality=1e9)
    assert perfect.true_ap(20_000) == pytest.approx(1.0, abs=1e-6)
    drawn = draw((perfect,), 10, 0)
    assert score(drawn.truth, drawn.results[0]).values["AP"] == 1.0


def test_intervals_cover_what_they_should() -> None:
    """Of 40 intervals at 95 %, fewer than 33 cover with a probability of 1 in 2000."""
    pair, images, repeats = (ONE_CLASS, better(ONE_CLASS)), 60, 40
    true_difference = pair[1].true_ap(20_000) - pair[0].true_ap(20_000)
    alone, differences = [], []
    for seed in range(repeats):
        drawn = draw(pair, images, seed)
        first, second = bootstrap(drawn.truth, drawn.results, resamples=100, seed=seed)
        alone.append(first.metrics["AP"])
        differences.append((second.difference or {})["AP"])
    mean = sum(interval.value for interval in alone) / repeats
    for intervals, target in ((alone, mean), (differences, true_difference)):
        assert share(intervals, target) >= 33 / repeats
        assert share([narrowed(interval) for interval in intervals], target) < 33 / repeats, "a gate with teeth"
    assert all(interval.low <= interval.value <= interval.high for interval in alone)


def narrowed(interval: Interval) -> Interval:
    """A third as wide: about half of them cover."""
    third = (interval.high - interval.low) / 6
    middle = (interval.high + interval.low) / 2
    return Interval(interval.value, middle - third, middle + third)


@pytest.mark.slow
def test_coverage_with_many_repeats() -> None:
    found = measure(ONE_CLASS, 200, repeats=400, resamples=200)
    assert 0.90 <= found["covers_ap_of_this_size"] <= 0.98
    assert 0.88 <= found["covers_true_ap"] <= 0.98
    assert 0.88 <= found["covers_true_difference"] <= 0.98
    rare = measure(Population(classes=10, objects=0.1, wrong=(0.025, 0.1)), 200, repeats=200, resamples=200)
    assert rare["covers_ap_of_this_size"] >= 0.88
    assert rare["covers_true_difference"] >= 0.88
    assert rare["bias"] > 0.02, "AP of few objects is too high, as the documentation says"
