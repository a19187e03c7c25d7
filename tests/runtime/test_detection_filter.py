from __future__ import annotations

import argparse

import numpy as np
import pytest

from runtime.detection_filter import (
    KEEP_ALL,
    DetectionFilter,
    add_filter_arguments,
    parse_filter,
    resolve_categories,
)
from runtime.detections import Detections, empty_detections
from runtime.errors import UserError

CATEGORIES = {1: "person", 3: "car", 5: "3", 7: "bus", 9: "bus"}
FOUND = Detections(
    np.arange(16, dtype=np.float32).reshape(4, 4),
    np.array([0.9, 0.5, 0.4, 0.1], np.float32),
    np.array([0, 1, 0, 2], np.int32),
)


def test_nothing_to_filter() -> None:
    assert len(DetectionFilter(0.5, (1,)).apply(empty_detections(), (1, 3, 5))) == 0


def test_the_default_keeps_everything() -> None:
    assert KEEP_ALL.apply(FOUND, (1, 3, 5)).scores.tolist() == FOUND.scores.tolist()
    assert KEEP_ALL.mask(np.array([-3.5, -0.0, 0.5]), np.array([1, 1, 1])).all(), (
        "scores of other tools may be negative"
    )


@pytest.mark.parametrize("ids", [None, (1,), (3, 5), (7,), ()])
@pytest.mark.parametrize("score", [0.0, 0.5, 0.95])
def test_a_detection_is_kept_if_it_meets_every_condition(score: float, ids: tuple[int, ...] | None) -> None:
    category_ids = (1, 3, 5)
    kept = DetectionFilter(score, ids).apply(FOUND, category_ids)
    rows = [
        row
        for row in range(len(FOUND))
        if FOUND.scores[row] >= score and (ids is None or category_ids[FOUND.classes[row]] in ids)
    ]
    np.testing.assert_array_equal(kept.boxes, FOUND.boxes[rows])
    np.testing.assert_array_equal(kept.classes, FOUND.classes[rows])


def test_classes_are_ids_or_names() -> None:
    assert resolve_categories([], CATEGORIES, "val.json") is None
    assert resolve_categories([3, "1", "person", "car"], CATEGORIES, "val.json") == (3, 1, 1, 3)
    assert resolve_categories(["3"], CATEGORIES, "val.json") == (3,), "a number is an id, even where a name is the same"


def test_unknown_and_ambiguous_classes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"class 'dog': no such category in val.json; known: 1 person, 3 car, 5 3, 7"):
        resolve_categories(["person", "dog"], CATEGORIES, "val.json")
    with pytest.raises(UserError, match=r"class 'bus': several categories .* give one of their ids: \[7, 9\]"):
        resolve_categories(["bus"], CATEGORIES, "val.json")
    with pytest.raises(UserError, match=r"19 c19, … \(1203 in all\)$") as caught:
        resolve_categories(["x"], {number: f"c{number}" for number in range(1203)}, "val.json")
    assert "\n" not in str(caught.value)


def test_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    add_filter_arguments(parser, 0.3)
    parse = parser.parse_args
    assert parse_filter(parse([]), CATEGORIES, "x") == DetectionFilter(0.3)
    assert parse_filter(parse(["--score", "0.7", "--classes", "1", "car"]), CATEGORIES, "x") == DetectionFilter(
        0.7, (1, 3)
    )


@pytest.mark.parametrize("score", ["-0.1", "1.1", "nan", "high"])
def test_scores_that_make_no_sense(score: str, capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    add_filter_arguments(parser, 0.3)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--score={score}"])
    assert f"{score}: expected at least 0 and at most 1" in capsys.readouterr().err
