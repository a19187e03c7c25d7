"""How far a training is: which steps a log has a line of, what the line forecasts, and that a terminal has a bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from train.trainer.progress import EVERY_S, MEASURED_S, UNTIMED, Progress, duration, seconds_left


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of(seconds: Sequence[float], first: int = 0, note: str = "", shown: bool = True) -> list[tuple[float, str]]:
    """When a run whose steps take so many seconds says what, counted from its start."""
    clock, said = Clock(), []
    steps = range(first, first + len(seconds))
    progress = Progress(
        steps,
        first,
        first + len(seconds),
        shown,
        bar=False,
        clock=clock,
        write=lambda line: said.append((clock.now - 1000, line)),
    )
    handed_on = []
    for step, takes in zip(progress, seconds, strict=True):
        handed_on.append(step)
        clock.now += takes
        progress.note = note
    assert handed_on == list(steps)
    return said


def test_a_run_without_a_step_says_nothing() -> None:
    assert lines_of([]) == []
    assert lines_of([100.0], first=7) == []  # what would be left of a single step


def test_the_first_line_comes_early_and_those_after_it_every_half_minute() -> None:
    said = lines_of([0.5] * 400)  # 200 s
    times = [when for when, _ in said]
    assert times[0] == UNTIMED * 0.5 + MEASURED_S
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps == [EVERY_S] * 6


def test_slow_steps_have_a_line_each_and_no_more() -> None:
    said = lines_of([40.0] * 5)
    assert [when for when, _ in said] == [40, 80, 120, 160]
    assert [line.split(" of ")[0] for _, line in said] == ["step 1", "step 2", "step 3", "step 4"]


def test_a_short_run_is_over_before_a_line() -> None:
    assert lines_of([0.1] * 40) == []


def test_the_forecast_is_of_the_steps_left() -> None:
    """Steps of a second, the first three of ten: they say nothing about the others."""
    said = dict(lines_of([10.0] * UNTIMED + [1.0] * 197, note="loss 1.234"))
    assert said[30.0] == "step 3 of 200 (1 %)  loss 1.234  about 33 min to go"  # nothing better is known yet
    assert said[60.0] == "step 33 of 200 (16 %)  loss 1.234  about 3 min to go"
    assert said[180.0] == "step 153 of 200 (76 %)  loss 1.234  about 50 s to go"
    assert max(said) < 227


def test_a_pause_within_a_step_counts() -> None:
    """An evaluation of a minute: its line comes after it, and the forecast has room for another."""
    said = lines_of([1.0] * 33 + [61.0] + [1.0] * 29)
    assert [when for when, _ in said] == [8, 94]
    assert said[1][1] == "step 34 of 63 (53 %)  about 1 min to go"  # 29 of 91 s / 31


def test_a_resumed_run_goes_on_counting() -> None:
    said = lines_of([1.0] * 50, first=150)
    assert said[0] == (8.0, "step 158 of 200 (79 %)  about 40 s to go")


def test_other_units_are_named() -> None:
    clock, said = Clock(), []
    for _ in Progress(range(3), 0, 3, unit="val image", bar=False, clock=clock, write=said.append):
        clock.now += 31
    assert said == ["val image 1 of 3 (33 %)  about 1 min to go", "val image 2 of 3 (66 %)  about 30 s to go"]


def test_only_the_first_process_speaks() -> None:
    assert lines_of([40.0] * 5, shown=False) == []


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    def steps() -> Iterator[int]:
        yield from range(150, 153)

    progress = Progress(steps(), 150, 153, bar=True)
    for _ in progress:
        progress.note = "loss 1.234"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "153/153" in printed.err
    assert "loss 1.234" in printed.err


def test_a_captured_output_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for _ in Progress(range(4), 0, 4, clock=clock):
        clock.now += 31
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 3
    assert "\r" not in printed.out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "10 s"),
        (14, "10 s"),
        (54, "50 s"),
        (55, "1 min"),
        (89, "1 min"),
        (91, "2 min"),
        (460, "8 min"),
        (5940, "99 min"),
        (5999, "1.7 h"),
        (90_000, "25.0 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_seconds_left() -> None:
    assert seconds_left(12.0, 4, 0) == 0
    assert seconds_left(12.0, 4, 10) == 30
