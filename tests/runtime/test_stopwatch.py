"""Seconds per stage, on a clock that the test moves."""

from __future__ import annotations

import pytest

from runtime.stopwatch import STAGES, Stopwatch


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_that_never_ran_is_absent() -> None:
    assert Stopwatch().seconds == {}


def test_stages_add_up() -> None:
    clock = Clock()
    stopwatch = Stopwatch(clock)
    for seconds in (1.0, 2.5):
        with stopwatch.measure("decode"):
            clock.now += seconds
        clock.now += 10  # between two stages
    stopwatch.add("infer", 0.25)
    other = Stopwatch(clock)
    other.add("infer", 0.5)
    other.add("copy_out", 4)
    stopwatch.merge(other)
    assert stopwatch.seconds == {"decode": 3.5, "infer": 0.75, "copy_out": 4}
    assert other.seconds == {"infer": 0.5, "copy_out": 4}


def test_a_stage_within_a_stage() -> None:
    clock = Clock()
    stopwatch = Stopwatch(clock)
    with stopwatch.measure("network"):
        clock.now += 1
        with stopwatch.measure("infer"):
            clock.now += 2
    assert stopwatch.seconds == {"infer": 2, "network": 3}


def test_a_block_that_raises_adds_nothing() -> None:
    stopwatch = Stopwatch()
    with pytest.raises(ValueError, match="broken"), stopwatch.measure("infer"):
        raise ValueError("broken")
    assert stopwatch.seconds == {}


def test_stages_are_in_the_order_of_a_batch() -> None:
    assert STAGES == ("decode", "preprocess", "copy_in", "infer", "copy_out", "postprocess")
