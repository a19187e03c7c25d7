"""TIDE's kinds and worths against a slow loop, and against what tidecv itself gave (benchmarks/tide_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.analysis.errors import KINDS, NOT_COUNTED, Errors, find_errors
from runtime.coco import parse_ground_truth, parse_results, score
from runtime.detection_filter import DetectionFilter

from ...support.tide_loop import random_data, tide

GOLDENS = json.loads(Path(__file__).with_name("tide_goldens.json").read_text(encoding="utf-8"))


def errors_of(content: dict[str, Any], results: list[dict[str, Any]], **options: Any) -> Errors:
    return find_errors(parse_ground_truth(content), parse_results(results, "results"), **options)


def test_nothing_was_found() -> None:
    content, _ = random_data(0)
    found = errors_of(content, [])
    objects = sum(not entry["iscrowd"] for entry in content["annotations"])
    assert found.counts == {**dict.fromkeys(found.counts, 0), "missed": objects}
    assert found.ap == found.ap50 == 0
    assert found.worth["missed"] == found.worth50["missed"] == 1
    assert found.worth["background"] == 0


def test_there_is_nothing_to_find() -> None:
    content, results = random_data(0)
    found = errors_of({**content, "annotations": []}, results)
    assert found.ap == found.ap50 == -1
    assert set(found.worth.values()) == {-1.0}
    assert found.counts["background"] == len(results)


@pytest.mark.parametrize("seed", range(6))
def test_a_slow_loop_finds_the_same(seed: int) -> None:
    content, results = random_data(seed)
    found, slow = errors_of(content, results), tide(content, results)
    assert [KINDS[kind] for kind in found.kinds] == slow["kinds"]
    assert set(slow["kinds"]) == set(KINDS), "else this shows little"
    truth = sorted(content["annotations"], key=lambda a: (a["image_id"], a["category_id"]))
    assert sorted(truth[row]["id"] for row in np.flatnonzero(found.missed)) == sorted(slow["missed"])
    assert found.ap50 == pytest.approx(slow["ap"], abs=1e-12)
    assert found.worth50 == pytest.approx(slow["worth"], abs=1e-12)
    for kind, count in found.counts.items():
        assert count == found.per_class[kind].sum()
        assert count == (len(slow["missed"]) if kind == "missed" else slow["kinds"].count(kind))


def test_worth_in_ap_is_the_mean_over_the_thresholds() -> None:
    content, results = random_data(7)
    slow = [tide(content, results, threshold)["worth"] for threshold in np.linspace(0.5, 0.95, 10)]
    expected = {kind: float(np.mean([worth[kind] for worth in slow])) for kind in slow[0]}
    assert errors_of(content, results).worth == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda row: f"{row['seed']}-{row['crowds']}-{row['iou']}")
def test_tidecv_gave_what_the_slow_loop_gives(golden: dict[str, Any]) -> None:
    """At its recalls, some of which differ from COCO's in the last bit."""
    data = random_data(golden["seed"], crowds=golden["crowds"])
    slow = tide(*data, golden["iou"], [number / 100 for number in range(101)])
    assert 100 * slow["ap"] == pytest.approx(golden["ap"], abs=1e-9)
    assert {kind: 100 * value for kind, value in slow["worth"].items()} == pytest.approx(golden["worth"], abs=1e-9)


@pytest.mark.parametrize("seed", sorted({row["seed"] for row in GOLDENS}))
def test_tidecv_gave_the_same(seed: int) -> None:
    """These data have no recall at which the last bit decides."""
    (golden,) = (row for row in GOLDENS if (row["seed"], row["crowds"], row["iou"]) == (seed, False, 0.5))
    found = errors_of(*random_data(seed, crowds=False))
    assert 100 * found.ap50 == pytest.approx(golden["ap"], abs=1e-9)
    assert {kind: 100 * value for kind, value in found.worth50.items()} == pytest.approx(golden["worth"], abs=1e-9)
    assert found.counts == golden["counts"]


def test_ap_is_that_of_the_score_whatever_is_left_out() -> None:
    content, results = random_data(3)
    truth, parsed = parse_ground_truth(content), parse_results(results, "results")
    some = [image["id"] for image in content["images"]][::2]
    for ids, kept in ((None, DetectionFilter()), (some, DetectionFilter(0.3)), (None, DetectionFilter(0, (9,)))):
        found, scored = find_errors(truth, parsed, ids, kept), score(truth, parsed, ids, kept).values
        assert (found.ap, found.ap50) == (scored["AP"], scored["AP50"])
        counted = kept.mask(parsed.scores, parsed.category_ids)
        counted &= np.isin(parsed.image_ids, truth.image_ids if ids is None else ids)
        assert ((found.kinds != NOT_COUNTED) == counted).all()


def test_rows_name_the_objects() -> None:
    content, results = random_data(5)
    truth = parse_ground_truth(content)
    found = errors_of(content, results)
    for row in np.flatnonzero(found.kinds == KINDS.index("correct")):
        assert found.found_by[found.objects[row]] == row
    for row in np.flatnonzero(found.kinds == KINDS.index("class")):
        assert truth.category_ids[truth.categories[found.objects[row]]] != results[row]["category_id"]
        assert found.ious[row] >= 0.5
    assert (found.objects[found.kinds == KINDS.index("background")] == -1).all()
