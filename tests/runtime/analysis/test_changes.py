"""Changes between two results: nothing, symmetry, and a slow loop."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from runtime.analysis.changes import CHANGE_KINDS, Changes, find_changes
from runtime.analysis.counts import ASPECTS, count_objects
from runtime.coco import parse_ground_truth, parse_results

from ...support.tide_loop import iou, random_data

SCORE = 0.4


def changed(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """A data set, results, and the same with some gone, some new, some moved and some with another score."""
    content, before = random_data(seed)
    rng = np.random.default_rng(seed)
    after = [copy.deepcopy(row) for row in before if rng.random() > 0.1]
    for row in after:
        if rng.random() < 0.5:
            row["bbox"] = [max(value, 1.0) for value in (np.array(row["bbox"]) + rng.normal(0, 6, 4)).tolist()]
        if rng.random() < 0.5:
            row["score"] = float(np.clip(row["score"] + rng.normal(0, 0.15), 0, 1))
    after += [{**row, "bbox": [300.0, 300.0, 40.0, 50.0]} for row in before[::9]]
    return content, before, [after[i] for i in rng.permutation(len(after))]


def compare(content: dict[str, Any], a: list[dict[str, Any]], b: list[dict[str, Any]], **options: Any) -> Changes:
    given = {"min_score": SCORE, **options}
    return find_changes(parse_ground_truth(content), parse_results(a, "a"), parse_results(b, "b"), **given)


def slow(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, int]:
    """Counts by the rules of the module; IoUs of the random data do not tie."""
    used_a, used_b, matched = set(), set(), []
    pairs = [
        (iou(x["bbox"], y["bbox"]), i, j)
        for i, x in enumerate(a)
        for j, y in enumerate(b)
        if (x["image_id"], x["category_id"]) == (y["image_id"], y["category_id"])
        and min(x["score"], y["score"]) >= SCORE
    ]
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= 0.5 and i not in used_a and j not in used_b:
            used_a.add(i)
            used_b.add(j)
            matched.append((overlap, b[j]["score"] - a[i]["score"]))
    return {
        "gained": sum(row["score"] >= SCORE for row in b) - len(matched),
        "lost": sum(row["score"] >= SCORE for row in a) - len(matched),
        "moved": sum(overlap < 0.9 for overlap, _ in matched),
        "rescored": sum(abs(shift) >= 0.05 for _, shift in matched),
    }


def test_nothing_against_nothing_and_against_something() -> None:
    content, before, _ = changed(0)
    empty = compare(content, [], [])
    assert set(empty.counts.values()) == {0}
    assert (empty.moved_iou, empty.score_shift, empty.unchanged, empty.changed_images) == (None, None, 0, 0)
    count = sum(row["score"] >= SCORE for row in before)
    assert compare(content, before, []).counts == {"gained": 0, "lost": count, "moved": 0, "rescored": 0}


@pytest.mark.parametrize("seed", range(5))
def test_the_same_results_have_no_change_in_any_order(seed: int) -> None:
    content, before, _ = changed(seed)
    before += copy.deepcopy(before[::4])  # the very same box and score twice
    turned = [before[i] for i in np.random.default_rng(seed).permutation(len(before))]
    found = compare(content, before, turned)
    assert set(found.counts.values()) == {0}
    assert found.unchanged == sum(row["score"] >= SCORE for row in before)
    assert not found.amounts.any()
    assert found.image_ids.tolist() == sorted(found.image_ids.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_loop_finds_the_same(seed: int) -> None:
    content, before, after = changed(seed)
    found = compare(content, before, after)
    assert found.counts == slow(before, after)
    assert min(found.counts.values()) > 0, "else this shows little"
    for kind in CHANGE_KINDS:
        assert found.per_class[kind].sum() == found.per_image[kind].sum() == found.counts[kind]
    assert (np.diff(found.amounts) <= 1e-9).all()


@pytest.mark.parametrize("seed", range(5))
def test_exchanging_both_exchanges_gained_and_lost(seed: int) -> None:
    content, before, after = changed(seed)
    there, back = compare(content, before, after), compare(content, after, before)
    assert sorted(there.gained) == sorted(back.lost)
    assert sorted(there.lost) == sorted(back.gained)
    assert dict(zip(there.lost, there.lost_to, strict=True)) == dict(zip(back.gained, back.gained_from, strict=True))
    assert set(zip(there.before, there.after, strict=True)) == set(zip(back.after, back.before, strict=True))
    assert there.score_shift == pytest.approx(-back.score_shift)
    assert there.moved_iou == pytest.approx(back.moved_iou)
    assert dict(zip(there.image_ids, there.amounts, strict=True)) == pytest.approx(
        dict(zip(back.image_ids, back.amounts, strict=True))
    )


def test_a_score_that_slips_below_is_lost_but_its_box_is_named() -> None:
    content, before, _ = changed(1)
    row = max(before, key=lambda row: row["score"])
    found = compare(content, [row], [{**row, "score": SCORE - 0.1}])
    assert (found.lost.tolist(), found.lost_to.tolist(), found.gained.tolist()) == ([0], [0], [])
    assert found.amounts[0] == pytest.approx(row["score"] - SCORE + 0.1)


def test_counts_of_objects() -> None:
    boxes = [(4, 10, 10, 0), (4, 32, 32, 0), (4, 10, 50, 0), (9, 300, 100, 0), (9, 9, 9, 1), (9, 0, 5, 0)]
    content = {
        "images": [{"id": 1, "height": 500, "width": 500}, {"id": 2, "height": 500, "width": 500}],
        "categories": [{"id": c, "name": f"c{c}"} for c in (4, 9, 17)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "bbox": [0, 0, w, h], "area": w * h, "iscrowd": crowd}
            for i, (c, w, h, crowd) in enumerate(boxes)
        ],
    }
    found = count_objects(parse_ground_truth(content))
    assert (found.images, found.objects.tolist(), found.regions.tolist()) == (2, [3, 2, 0], [0, 1, 0])
    assert found.images_of_class.tolist() == [1, 1, 0]
    assert found.sizes.tolist() == [[2, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert found.aspects[0].tolist() == [1, 0, 0, 2, 0, 0, 0]
    assert found.aspects[1, ASPECTS.index("2:1 to 4:1")] == found.aspects[1].sum() == 1
    beside = found.of_classes(("other", "c9"))
    assert (beside.objects.tolist(), beside.sizes.tolist()) == ([0, 2], [[0, 0, 0], [1, 0, 1]])
    none = count_objects(parse_ground_truth({**content, "annotations": []}))
    assert none.objects.sum() == none.aspects.sum() == none.images_of_class.sum() == 0
