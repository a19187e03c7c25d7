"""Properties of changes that hold for all results: of ties, doubles, empty images and boxes that touch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.analysis.changes import CHANGE_KINDS, Changes, find_changes
from runtime.coco import parse_ground_truth, parse_results

pytest.importorskip("hypothesis", reason="draws the results")
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGES, CATEGORIES = (2, 5, 9), (4, 7)
SCORE = 0.4
TRUTH = parse_ground_truth(
    {
        "images": [{"id": one, "height": 100, "width": 100, "file_name": f"{one}.jpg"} for one in IMAGES],
        "categories": [{"id": one, "name": f"c{one}"} for one in CATEGORIES],
        "annotations": [],
    }
)
# Few boxes and scores, so that boxes coincide, IoUs and scores tie, and scores lie on the edges.
BOXES = st.sampled_from([(x, y, 10.0, side) for x in (0.0, 1.0, 3.0) for y in (0.0, 1.0) for side in (10.0, 11.0)])
SCORES = st.sampled_from([0.0, 0.35, 0.39, 0.4, 0.42, 0.45, 0.9, 1.0])
Row = dict[str, Any]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    return {
        "image_id": draw(st.sampled_from((IMAGES[0], *IMAGES))),
        "category_id": draw(st.sampled_from((CATEGORIES[0], *CATEGORIES))),
        "bbox": list(draw(BOXES)),
        "score": draw(SCORES),
    }


RESULTS = st.lists(rows(), max_size=16)


def compare(before: list[Row], after: list[Row], images: tuple[int, ...] | None = None) -> Changes:
    return find_changes(TRUTH, parse_results(before, "a"), parse_results(after, "b"), images, min_score=SCORE)


def counted(found: list[Row]) -> list[int]:
    return [place for place, row in enumerate(found) if row["score"] >= SCORE]


def by_image(found: Changes) -> dict[int, tuple[float, ...]]:
    """The counts of each image and its amount, in an order that does not depend on the others."""
    columns = [found.per_image[kind].tolist() for kind in CHANGE_KINDS]
    return {
        image: (*numbers, round(amount, 9))
        for image, amount, *numbers in zip(found.image_ids.tolist(), found.amounts.tolist(), *columns, strict=True)
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(RESULTS, st.randoms(use_true_random=False))
def test_a_model_against_itself_has_no_change(results: list[Row], random: Any) -> None:
    turned = random.sample(results, len(results))
    found = compare(results, turned)
    assert set(found.counts.values()) == {0}
    assert found.unchanged == len(found.before) == len(counted(results))
    assert not found.amounts.any()
    assert found.changed_images == 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(RESULTS, RESULTS)
def test_exchanging_both_exchanges_gained_and_lost(before: list[Row], after: list[Row]) -> None:
    there, back = compare(before, after), compare(after, before)
    swapped = {"gained": "lost", "lost": "gained", "moved": "moved", "rescored": "rescored"}
    for kind, other in swapped.items():
        assert there.per_class[kind].tolist() == back.per_class[other].tolist()
    assert {image: (lost, gained, *rest) for image, (gained, lost, *rest) in by_image(there).items()} == by_image(back)
    assert there.unchanged == back.unchanged
    assert sorted(np.round(there.iou, 9)) == sorted(np.round(back.iou, 9))
    assert sorted(np.round(there.shift, 9)) == sorted(np.round(-back.shift, 9))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(RESULTS, RESULTS)
def test_every_detection_is_in_exactly_one_group(before: list[Row], after: list[Row]) -> None:
    found = compare(before, after)
    assert sorted([*found.before, *found.lost]) == counted(before)
    assert sorted([*found.after, *found.gained]) == counted(after)
    for a, b, iou in zip(found.before, found.after, found.iou, strict=True):
        assert [before[a][name] for name in ("image_id", "category_id")] == [
            after[b][name] for name in ("image_id", "category_id")
        ]
        assert iou >= 0.5
    # A box that is still there below the score is no other's, and is none that counts.
    for rows, slipped, other in ((found.lost, found.lost_to, after), (found.gained, found.gained_from, before)):
        assert len(rows) == len(slipped)
        named = [one for one in slipped.tolist() if one >= 0]
        assert len(named) == len(set(named))
        assert not set(named) & set(counted(other))
    assert found.unchanged + int((found.moved | found.rescored).sum()) == len(found.before)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(RESULTS, RESULTS)
def test_all_images_give_what_each_gives_alone(before: list[Row], after: list[Row]) -> None:
    together = compare(before, after)
    alone: dict[int, tuple[float, ...]] = {}
    kinds = dict.fromkeys(CHANGE_KINDS, 0)
    groups: dict[str, list[int]] = {"before": [], "after": [], "lost": [], "gained": []}
    for image in IMAGES:
        one = compare(before, after, (image,))
        assert one.image_ids.tolist() == [image]
        alone |= by_image(one)
        for kind, count in one.counts.items():
            kinds[kind] += count
        for name, places in groups.items():
            places += getattr(one, name).tolist()
        # The same with the other images' results gone: no row of theirs had a say.
        own = [[row for row in rows if row["image_id"] == image] for rows in (before, after)]
        assert by_image(compare(*own, (image,))) == by_image(one)
    assert by_image(together) == alone
    assert together.counts == kinds
    for name, places in groups.items():
        assert sorted(places) == sorted(getattr(together, name).tolist())
    assert (np.diff(together.amounts) <= 1e-9).all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(RESULTS, RESULTS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(before: list[Row], after: list[Row], random: Any) -> None:
    found = compare(before, after)
    turned = compare(random.sample(before, len(before)), random.sample(after, len(after)))
    assert by_image(turned) == by_image(found)
    assert turned.unchanged == found.unchanged
    assert sorted(np.round(turned.iou, 9)) == sorted(np.round(found.iou, 9))
    assert sorted(np.round(turned.shift, 9)) == sorted(np.round(found.shift, 9))


def test_of_equal_boxes_those_of_closer_scores_are_matched() -> None:
    row = {"image_id": 2, "category_id": 4, "bbox": [0.0, 0.0, 10.0, 10.0]}
    found = compare([{**row, "score": 0.9}, {**row, "score": 0.42}], [{**row, "score": 0.45}])
    assert (found.before.tolist(), found.after.tolist(), found.lost.tolist()) == ([1], [0], [0])
    assert found.counts == {"gained": 0, "lost": 1, "moved": 0, "rescored": 0}


def test_results_without_a_detection() -> None:
    found = compare([], [])
    assert (len(found.before), len(found.lost), len(found.gained)) == (0, 0, 0)
    assert found.image_ids.tolist() == list(IMAGES)
