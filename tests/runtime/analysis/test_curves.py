"""Curves over recall and over the score, and calibration, against slow loops with a matching of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.analysis.calibration import Calibration, calibration
from runtime.analysis.curves import F1Curve, F1Curves, f1_curve, f1_curves, precision_recall
from runtime.analysis.outcomes import find_outcomes
from runtime.coco import parse_ground_truth, parse_results
from runtime.coco.results import empty_results
from runtime.detection_filter import KEEP_ALL, DetectionFilter

from ..coco.test_coco_score import AWKWARD, by_pycocotools, make

Row = tuple[float, bool]  # score, whether it is a hit


def overlap(box: list[float], other: list[float], of_own_area: bool) -> float:
    """IoU of x, y, width, height; for a crowd, the part of the box that lies in it."""
    across = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    down = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    own = box[2] * box[3]
    return across * down / (own if of_own_area else own + other[2] * other[3] - across * down)


def has_no_area(row: dict[str, Any]) -> bool:
    """A negative area is none of those that COCO's evaluation counts."""
    return row.get("area", row["bbox"][2] * row["bbox"][3]) < 0


def slow_rows(content: dict[str, Any], results: list[dict[str, Any]], category: int, iou: float = 0.5) -> list[Row]:
    """The detections of a category that are right or wrong, image by image, as COCO's evaluation matches them."""
    found: list[Row] = []
    for image in sorted(row["id"] for row in content["images"]):
        place = {"image_id": image, "category_id": category}
        objects = [row for row in content["annotations"] if place.items() <= row.items()]
        ignored = [bool(row["iscrowd"]) or has_no_area(row) for row in objects]
        free = [True] * len(objects)
        ranked = sorted((row for row in results if place.items() <= row.items()), key=lambda row: -row["score"])
        for row in ranked[:100]:
            # The best object that counts, else the best one that does not; of equal ones, the last.
            values = [overlap(row["bbox"], target["bbox"], bool(target["iscrowd"])) for target in objects]
            usable = [number for number, value in enumerate(values) if free[number] and value >= iou]
            match = max(usable, key=lambda number: (not ignored[number], values[number], number), default=None)
            if match is None:
                if not has_no_area(row):
                    found.append((row["score"], False))
                continue
            free[match] = bool(objects[match]["iscrowd"])
            if not ignored[match]:
                found.append((row["score"], True))
    return found


def slow_f1(
    content: dict[str, Any], results: list[dict[str, Any]], categories: list[int], at: float
) -> tuple[float, float, float]:
    """Precision, recall and F1 of a new evaluation of the detections whose score is no less than `at`."""
    kept = [row for row in results if row["score"] >= at]
    rows = [row for category in categories for row in slow_rows(content, kept, category)]
    own = [row for row in content["annotations"] if row["category_id"] in categories]
    objects = sum(not row["iscrowd"] and not has_no_area(row) for row in own)
    hits = sum(hit for _, hit in rows)
    precision = hits / len(rows) if rows else -1.0
    if not objects:
        return precision, -1.0, -1.0
    recall = hits / objects
    return precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0


def curves_of(content: dict[str, Any], results: list[dict[str, Any]]) -> F1Curves:
    return f1_curves(parse_ground_truth(content), parse_results(results, "results"))


@pytest.mark.parametrize("kind", AWKWARD)
def test_f1_is_that_of_evaluating_at_every_threshold(kind: str) -> None:
    content, results = make(kind, 3, images=5 if kind == "many" else 8)
    found = curves_of(content, results)
    names = {row["name"]: [row["id"]] for row in content["categories"]}
    every_category = [row["id"] for row in content["categories"]]
    for curve, categories in ((found.total, every_category), *((found.per_class[n], names[n]) for n in names)):
        for place in range(0, 101, 10):
            expected = slow_f1(content, results, categories, float(curve.scores[place]))
            ours = curve.precision[place], curve.recall[place], curve.f1[place]
            assert ours == pytest.approx(expected)
        scores = sorted({row["score"] for row in results if row["category_id"] in categories})
        every = [slow_f1(content, results, categories, score)[2] for score in scores[:: max(1, len(scores) // 40)]]
        if curve.best_f1 > 0:
            assert slow_f1(content, results, categories, curve.best_score)[2] == pytest.approx(curve.best_f1)
        assert curve.best_f1 >= max(every, default=curve.best_f1) - 1e-12
        assert curve.best_f1 >= curve.f1.max()


def one(scores: list[float], hits: list[bool], objects: int) -> F1Curve:
    return f1_curve(np.array(scores), np.array(hits, bool), objects)


@pytest.mark.parametrize(
    ("scores", "hits", "objects", "best"),
    [
        ([], [], 0, (-1.0, -1.0)),
        ([], [], 3, (-1.0, 0.0)),
        ([0.5], [False], 0, (-1.0, -1.0)),
        ([0.5], [False], 3, (-1.0, 0.0)),
        ([0.5], [True], 1, (0.5, 1.0)),  # the highest with as few digits
        ([0.4321], [True], 1, (0.4, 1.0)),
        ([0.4321, 0.41], [True, False], 1, (0.43, 1.0)),
        ([0.4321, 0.432], [True, False], 1, (0.4321, 1.0)),
        ([0.9, 0.9, 0.3], [True, False, False], 1, (0.9, 2 / 3)),  # equal scores stay together
        # 1 of 2 at 0.8, then 2 of 4 with two wrong ones more: F1 is the same, and the lower threshold is taken.
        ([0.8, 0.6, 0.5, 0.4], [True, False, False, True], 2, (0.4, 2 / 3)),
        ([1e-9, 0.0], [True, False], 1, (1e-9, 1.0)),
        ([2.5, 1.5], [True, False], 1, (2.5, 1.0)),  # other tools' scores
        ([-0.5, -0.75], [True, False], 1, (-0.5, 1.0)),
    ],
)
def test_the_best_threshold(scores: list[float], hits: list[bool], objects: int, best: tuple[float, float]) -> None:
    curve = one(scores, hits, objects)
    assert (curve.best_score, curve.best_f1) == pytest.approx(best)
    if curve.best_f1 > 0:
        kept = np.array(scores) >= curve.best_score
        hit = int(np.array(hits)[kept].sum())
        assert 2 * hit / (kept.sum() + objects) == curve.best_f1


def test_every_threshold_keeps_its_own_score() -> None:
    for percent in range(101):
        curve = one([float(f"{percent / 100:.2f}")], [True], 1)
        assert (curve.f1 > 0).tolist() == [place <= percent for place in range(101)]


def test_a_threshold_keeps_its_own_score() -> None:
    curve = one([0.25, 0.3], [True, False], 2)
    assert curve.recall[25] == 0.5
    assert curve.recall[26] == 0.0
    assert curve.precision[31] == -1.0
    assert curve.f1[31] == 0.0


@pytest.mark.parametrize("kind", AWKWARD)
def test_precision_over_recall_is_pycocotools(kind: str) -> None:
    content, results = make(kind, 2)
    found = precision_recall(parse_ground_truth(content), parse_results(results, "results"))
    reference = by_pycocotools(content, results)
    np.testing.assert_array_equal(found.precision, reference.eval["precision"][..., 0, -1])
    assert found.classes == tuple(f"c{number}" for number in sorted(row["id"] for row in content["categories"]))
    assert len(found.ious) == found.precision.shape[0]
    assert len(found.recalls) == found.precision.shape[1]


def slow_calibration(rows: list[Row], bins: int) -> tuple[list[int], list[int], list[float], list[float], float]:
    """Hits, misses, confidence and precision of each bin, and the error."""
    members: list[list[Row]] = [[] for _ in range(bins)]
    for score, hit in rows:
        members[min(bins - 1, max(0, int(score * bins + 1e-9)))].append((score, hit))
    hits = [sum(hit for _, hit in part) for part in members]
    confidence = [sum(score for score, _ in part) / len(part) if part else -1.0 for part in members]
    precision = [count / len(part) if part else -1.0 for count, part in zip(hits, members, strict=True)]
    gaps = [len(part) * abs(c - p) for part, c, p in zip(members, confidence, precision, strict=True)]
    misses = [len(part) - count for part, count in zip(members, hits, strict=True)]
    return hits, misses, confidence, precision, sum(gaps) / len(rows) if rows else -1.0


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("kind", AWKWARD)
def test_calibration_is_that_of_a_slow_loop(kind: str, iou: float) -> None:
    content, results = make(kind, 1, images=5 if kind == "many" else 10)
    rows = [row for category in content["categories"] for row in slow_rows(content, results, category["id"], iou)]
    found = calibration(parse_ground_truth(content), parse_results(results, "results"), iou=iou, bins=8)
    hits, misses, confidence, precision, error = slow_calibration(rows, 8)
    assert (found.hits.tolist(), found.misses.tolist()) == (hits, misses)
    assert found.confidence.tolist() == pytest.approx(confidence)
    assert found.precision.tolist() == pytest.approx(precision)
    assert found.error == pytest.approx(error)
    assert found.counts.sum() == len(rows)


def test_calibration_without_detections_and_with_scores_at_the_edges() -> None:
    content, _ = make("plain", 1)
    truth = parse_ground_truth(content)
    empty = calibration(truth, empty_results(), bins=4)
    assert (empty.error, empty.counts.tolist(), empty.precision.tolist()) == (-1.0, [0] * 4, [-1.0] * 4)
    place = {"image_id": content["images"][0]["id"], "category_id": 5, "bbox": [600.0, 400.0, 5.0, 5.0]}
    scores = (-0.5, 0.0, 0.25, 0.5, 1.0, 3.0)
    found = calibration(truth, parse_results([{**place, "score": score} for score in scores], "results"), bins=4)
    assert found.misses.tolist() == [2, 1, 1, 2]
    assert found.confidence.tolist() == [-0.25, 0.25, 0.5, 2.0]


@pytest.mark.parametrize("bins", [10, 20])
def test_the_score_of_an_edge_belongs_to_the_bin_above(bins: int) -> None:
    content, _ = make("plain", 1)
    truth = parse_ground_truth(content)
    place = {"image_id": content["images"][0]["id"], "category_id": 5, "bbox": [600.0, 400.0, 5.0, 5.0]}
    edges = [{**place, "score": float(f"{n / bins:.2f}")} for n in range(bins)]
    found = calibration(truth, parse_results(edges, "results"), bins=bins)
    assert found.misses.tolist() == [1] * bins


def test_a_perfectly_calibrated_detector_has_no_error_and_a_sure_one_that_is_half_right_has_half() -> None:
    content: dict[str, Any] = {
        "images": [{"id": 1, "height": 100, "width": 9000}],
        "categories": [{"id": 1, "name": "c"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": [n * 100.0, 0.0, 50.0, 50.0], "iscrowd": 0}
            for n in range(40)
        ],
    }
    boxes = [row["bbox"] for row in content["annotations"]] + [[n * 100.0, 60.0, 20.0, 20.0] for n in range(40)]

    def at(score: float) -> Calibration:
        results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box in boxes]
        return calibration(parse_ground_truth(content), parse_results(results, "results"))

    assert at(0.5).error == 0.0
    assert at(1.0).error == 0.5


def test_images_and_filter_count_as_in_the_score() -> None:
    content, results = make("crowds", 6)
    truth, found = parse_ground_truth(content), parse_results(results, "results")
    ids, kept = [1, 8, 15, 22, 29], DetectionFilter(0.4, (5, 31))
    fewer = {
        **content,
        "images": [row for row in content["images"] if row["id"] in ids],
        "categories": [row for row in content["categories"] if row["id"] != 17],
        "annotations": [row for row in content["annotations"] if row["image_id"] in ids and row["category_id"] != 17],
    }
    rows = [row for row in results if row["image_id"] in ids and row["category_id"] != 17 and row["score"] >= 0.4]
    alone, theirs = parse_ground_truth(fewer), parse_results(rows, "results")
    assert find_outcomes(truth, found, ids, kept).hits.tolist() == find_outcomes(alone, theirs).hits.tolist()
    assert calibration(truth, found, ids, kept).error == calibration(alone, theirs).error
    assert f1_curves(truth, found, ids, kept).total.f1.tolist() == f1_curves(alone, theirs).total.f1.tolist()
    ours, expected = precision_recall(truth, found, ids, kept), precision_recall(alone, theirs)
    np.testing.assert_array_equal(ours.precision, expected.precision)
    assert ours.classes == expected.classes


def test_detections_of_a_class_without_objects_are_wrong_and_another_iou_is_refused() -> None:
    content, results = make("plain", 6)
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 5]
    truth, found = parse_ground_truth(content), parse_results(results, "results")
    outcomes = find_outcomes(truth, found)
    scores, hits = outcomes.of_class(0)
    assert len(scores) == sum(row["category_id"] == 5 for row in results)
    assert not hits.any()
    curve = f1_curves(truth, found, kept=KEEP_ALL).per_class["c5"]
    assert (curve.best_f1, curve.best_score, set(curve.recall.tolist())) == (-1.0, -1.0, {-1.0})
    assert curve.precision[0] == 0.0
    with pytest.raises(ValueError, match="none of COCO's thresholds"):
        find_outcomes(truth, found, iou=0.52)
