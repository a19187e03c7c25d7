"""The confusion matrix against a slow loop, COCO's hits, and supervision's where both rules agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.analysis.confusion import confusion_matrix
from runtime.analysis.errors import KINDS, find_errors
from runtime.coco import parse_ground_truth, parse_results

from ...support.tide_loop import iou, random_data


def matrix(content: dict[str, Any], results: list[dict[str, Any]], **options: Any) -> np.ndarray:
    return confusion_matrix(parse_ground_truth(content), parse_results(results, "results"), **options).counts


def slow(content: dict[str, Any], results: list[dict[str, Any]], min_score: float, least: float) -> np.ndarray:
    names = [category["id"] for category in content["categories"]]
    counts = np.zeros((len(names) + 1, len(names) + 1), int)
    for image in content["images"]:
        here = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        crowds, left = [a for a in here if a["iscrowd"]], [a for a in here if not a["iscrowd"]]
        found = [r for r in results if r["image_id"] == image["id"] and r["score"] >= min_score]
        others = []
        for r in sorted(found, key=lambda r: -r["score"]):
            own = [a for a in left if a["category_id"] == r["category_id"] and iou(r["bbox"], a["bbox"]) >= least]
            label = names.index(r["category_id"])
            if own:
                left.remove(max(own, key=lambda a: iou(r["bbox"], a["bbox"])))
                counts[label, label] += 1
            elif not any(
                a["category_id"] == r["category_id"] and iou(r["bbox"], a["bbox"], True) >= least for a in crowds
            ):
                others.append(r)
        while True:
            pairs = [(iou(r["bbox"], a["bbox"]), a, r) for a in left for r in others]
            pairs = [pair for pair in pairs if pair[0] >= least and pair[1]["category_id"] != pair[2]["category_id"]]
            if not pairs:
                break
            _, a, r = max(pairs, key=lambda pair: pair[0])
            counts[names.index(a["category_id"]), names.index(r["category_id"])] += 1
            left.remove(a)
            others.remove(r)
        for a in left:
            counts[names.index(a["category_id"]), -1] += 1
        for r in others:
            counts[-1, names.index(r["category_id"])] += 1
    return counts


def test_no_detections_and_no_objects() -> None:
    content, results = random_data(0)
    counts = matrix(content, [], min_score=0.5)
    assert counts[:, -1].sum() == counts.sum() == sum(not a["iscrowd"] for a in content["annotations"])
    counts = matrix({**content, "annotations": []}, results, min_score=0)
    assert counts[-1].sum() == counts.sum() == len(results)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("min_score", "least"), [(0.0, 0.5), (0.4, 0.3), (0.7, 0.75)])
def test_a_slow_loop_counts_the_same(seed: int, min_score: float, least: float) -> None:
    content, results = random_data(seed)
    expected = slow(content, results, min_score, least)
    np.testing.assert_array_equal(matrix(content, results, min_score=min_score, iou=least), expected)
    assert expected[:-1, :-1].sum() > np.trace(expected), "else no class is taken for another"


def test_the_diagonal_counts_the_hits_of_the_score() -> None:
    content, results = random_data(8)
    truth, parsed = parse_ground_truth(content), parse_results(results, "results")
    kinds = find_errors(truth, parsed).kinds
    hits = ((kinds == KINDS.index("correct")) & (parsed.scores >= 0.4)).sum()
    assert np.trace(confusion_matrix(truth, parsed, min_score=0.4).counts) == hits > 0


def test_supervision_counts_the_same_where_nothing_competes() -> None:
    sv = pytest.importorskip("supervision")
    content, results = random_data(1, crowds=False)
    rng = np.random.default_rng(0)
    results = []  # one near each object, of a class that may be wrong, and one far away
    for number, a in enumerate(content["annotations"]):
        a["bbox"] = [200.0 * (number % 7), 200.0 * (number // 7), *a["bbox"][2:]]
        box = (np.array(a["bbox"]) + rng.normal(0, 6, 4)).tolist()
        row = {"image_id": a["image_id"], "category_id": int(rng.choice([4, 9, 17])), "score": float(rng.random())}
        results += [{**row, "bbox": box}, {**row, "bbox": [5000.0, 5000.0, 9.0, 9.0]}]
    names = [4, 9, 17]

    def rows(entries: list[dict[str, Any]], scored: bool) -> np.ndarray:
        found = []
        for e in entries:
            x, y, w, h = e["bbox"]
            found.append([x, y, x + w, y + h, names.index(e["category_id"]), *([e["score"]] if scored else [])])
        return np.array(found, np.float32).reshape(-1, 6 if scored else 5)

    ids = [image["id"] for image in content["images"]]
    theirs = sv.ConfusionMatrix.from_tensors(
        predictions=[rows([r for r in results if r["image_id"] == i], True) for i in ids],
        targets=[rows([a for a in content["annotations"] if a["image_id"] == i], False) for i in ids],
        classes=["a", "b", "c"],
        conf_threshold=0.3,
    )
    ours = matrix(content, results, min_score=0.3)
    np.testing.assert_array_equal(ours, theirs.matrix)
    assert ours[:-1, :-1].sum() > np.trace(ours) > 0
