"""The comparisons that verify rests on must see differences."""

from __future__ import annotations

import numpy as np
import pytest

from export.verification.matching import (
    count_differing_rows,
    count_unmatched,
    greedy_nms,
    max_relative_error,
    relative_rms_error,
)
from runtime.detections import Detections, empty_detections


def detections(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
    )


THREE = detections([[0, 0, 100, 100], [200, 0, 300, 100], [5, 5, 5, 5]], [0.9, 0.8, 0.7], [0, 1, 1])


def test_nothing_against_nothing() -> None:
    empty = empty_detections()
    assert count_unmatched(empty, empty) == count_differing_rows(empty, empty) == 0
    assert count_unmatched(THREE, empty) == count_differing_rows(THREE, empty) == 3
    assert count_unmatched(empty, THREE) == 0
    assert len(greedy_nms(empty, 0.6, 100)) == 0


def test_a_set_has_no_order() -> None:
    turned = Detections(THREE.boxes[::-1], THREE.scores[::-1], THREE.classes[::-1])
    assert count_unmatched(THREE, turned) == 0
    assert count_differing_rows(THREE, turned) == 2  # the middle one stands where it stood


@pytest.mark.parametrize(
    "change",
    [
        lambda d: Detections(d.boxes + np.float32(2), d.scores, d.classes),
        lambda d: Detections(d.boxes, d.scores + np.float32(0.002), d.classes),
        lambda d: Detections(d.boxes, d.scores, d.classes + 2),
    ],
    ids=["box", "score", "class"],
)
def test_a_difference_leaves_rows_without_partner(change) -> None:  # type: ignore[no-untyped-def]
    assert count_unmatched(THREE, change(THREE)) == 3
    assert count_differing_rows(THREE, change(THREE)) == 3


def test_a_tiny_difference_has_a_partner_but_is_not_the_same_row() -> None:
    moved = Detections(THREE.boxes + np.float32(0.01), THREE.scores, THREE.classes)
    assert count_unmatched(THREE, moved) == 0
    assert count_differing_rows(THREE, moved) == 3


def test_many_rows() -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(0, 1000, (1500, 2)).astype(np.float32)
    many = Detections(
        np.concatenate([corner, corner + 50], axis=1), random.random(1500, np.float32), np.zeros(1500, np.int32)
    )
    order = random.permutation(1500)
    mixed = Detections(many.boxes[order], many.scores[order], many.classes[order])
    assert count_unmatched(many, mixed) == 0
    shifted = Detections(many.boxes + np.float32(5000), many.scores, many.classes)
    assert count_unmatched(many, shifted) == 1500


def test_greedy_by_hand() -> None:
    """The second is covered by the first, the third (covered by the second only) stays, the fourth is another class."""
    candidates = detections(
        [[0, 0, 100, 100], [20, 0, 120, 100], [40, 0, 140, 100], [0, 0, 100, 100]], [0.6, 0.5, 0.4, 0.3], [0, 0, 0, 1]
    )
    assert greedy_nms(candidates, 0.6, 100).scores.tolist() == pytest.approx([0.6, 0.4, 0.3])
    assert greedy_nms(candidates, 0.6, 2).scores.tolist() == pytest.approx([0.6, 0.4])


def test_maps_of_other_shapes_are_infinitely_far() -> None:
    a, b = np.zeros((1, 3, 4, 4)), np.zeros((1, 3, 4, 5))
    assert max_relative_error(a, b) == relative_rms_error([(a, a), (a, b)]) == np.inf


def test_the_worst_level_counts_in_terms_of_all_levels() -> None:
    """A level of 6 cells that is wrong altogether isn't averaged away by one of 6000."""
    rng = np.random.default_rng(0)
    large, small = rng.normal(0, 2, 6000), rng.normal(0, 2, 6)
    assert relative_rms_error([(large, large), (small, small)]) == 0
    assert relative_rms_error([(large, large), (small, small + 1)]) == pytest.approx(0.5, rel=0.05)
    assert max_relative_error(np.array([1.0, -3.0]), np.array([1.0, -3.4])) == pytest.approx(0.1)
