"""Our scoring against pycocotools' own classes, bit for bit, on data made to be awkward."""

from __future__ import annotations

import contextlib
import copy
import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.coco import CocoMetrics, matching, metrics, parse_ground_truth, parse_results, row_store, scoring
from runtime.coco import results as results_module
from runtime.coco.results import Results, join_results, take
from runtime.detection_filter import DetectionFilter

AWKWARD = (
    "plain",
    "ties",
    "many",
    "crowds",
    "one class",
    "no detections",
    "no objects",
    "sizes at the limits",
    "no size",
)


def make(kind: str, seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results of a few images; ids and categories are neither dense nor in order."""
    rng = np.random.default_rng(seed)
    categories = [5] if kind == "one class" else [31, 5, 17]
    content: dict[str, Any] = {
        "images": [{"id": int(i) * 7 + 1, "height": 480, "width": 640} for i in rng.permutation(images)],
        "categories": [{"id": c, "name": f"c{c}"} for c in categories],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []
    for image in content["images"]:
        for _ in range(0 if kind == "no objects" else rng.integers(0, 9)):
            category = int(rng.choice(categories))
            box = [*rng.uniform(0, 300, 2), *rng.choice([rng.uniform(4, 40), rng.uniform(40, 250)], 2)]
            if kind == "ties":
                box = [float(value) for value in (np.round(np.array(box) / 16) * 16).clip(16)]
            if kind == "sizes at the limits":
                box[2:] = [32.0, 32.0] if rng.random() < 0.5 else [96.0, 96.0]
            if kind == "no size":
                box[2:] = np.array(box[2:]) * rng.choice([1, 1, 0, -1], 2)
            box = [float(value) for value in box]
            is_crowd = kind in ("crowds", "no size") and rng.random() < 0.4
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * (1.0 if kind == "sizes at the limits" else float(rng.uniform(0.5, 1))),
                    "iscrowd": int(is_crowd),
                }
            )
            if kind == "no size":
                content["annotations"][-1]["area"] *= float(rng.choice([1, 1, 0, -1]))
            for _ in range(rng.integers(0, 6) if kind != "many" else 60):
                step = rng.normal(0, 0.06, 4) * np.array([box[2], box[3], box[2], box[3]])
                moved = [float(value) for value in np.array(box) + (np.round(step) if kind == "ties" else step)]
                results.append({"image_id": image["id"], "category_id": category, "bbox": moved})
        for _ in range(rng.integers(0, 8)):
            box = [float(value) for value in (*rng.uniform(0, 300, 2), *rng.uniform(3, 120, 2))]
            results.append({"image_id": image["id"], "category_id": int(rng.choice(categories)), "bbox": box})
    for result in results:
        result["score"] = float(rng.integers(1, 6) / 8 if kind == "ties" else rng.random())
    order = rng.permutation(len(results))
    return content, [] if kind == "no detections" else [results[i] for i in order]


def score(content: dict, results: list[dict], image_ids: list[int] | None = None) -> CocoMetrics:
    return metrics.score(parse_ground_truth(content), parse_results(results, "results"), image_ids)


def by_pycocotools(
    content: dict, results: list[dict], image_ids: list[int] | None = None, category_ids: tuple[int, ...] | None = None
) -> COCOeval:
    content = copy.deepcopy(content)
    rows = [
        {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(results, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = content, {**content, "annotations": rows}
        truth.createIndex()
        found.createIndex()
        scorer = COCOeval(truth, found, "bbox")
        if image_ids is not None:
            scorer.params.imgIds = image_ids
        if category_ids is not None:
            scorer.params.catIds = list(category_ids)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", AWKWARD)
def test_every_number_is_pycocotools(kind: str, seed: int, in_files: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_files:
        monkeypatch.setattr(matching, "IMAGES_AT_A_TIME", 5)
        monkeypatch.setattr(row_store, "BYTES_HELD", 1)
        monkeypatch.setattr(results_module, "PART", 7)
        monkeypatch.setattr(scoring, "PART", 7)
    content, results = make(kind, seed)
    reference = by_pycocotools(content, results)
    found = join_results([parse_results(results, "results")])
    assert found.scores.flags.writeable != (in_files and len(results) > 0), "a mapped file is read-only"
    scores = scoring.precision_recall(parse_ground_truth(content), found)
    np.testing.assert_array_equal(scores.precision, reference.eval["precision"][..., -1])
    np.testing.assert_array_equal(scores.recall[..., -1], reference.eval["recall"][..., -1])
    np.testing.assert_array_equal(scores.recall[:, :, 0], reference.eval["recall"][:, :, 0])
    assert list(scoring.metric_values(scores).values()) == reference.stats.tolist()
    if kind == "plain":
        assert 0.05 < reference.stats[0] < 0.95, "else this shows little"


def test_the_makers_cases_are_awkward() -> None:
    """Ties of score and IoU, over 100 detections of an image and category, crowds that are hit, boxes without a size:
    they do occur.
    """
    _, results = make("ties", 0)
    assert len({result["score"] for result in results}) < 6
    _, results = make("many", 0)
    groups = [(result["image_id"], result["category_id"]) for result in results]
    assert max(map(groups.count, groups)) > 100
    content, results = make("crowds", 0)
    without = {**content, "annotations": [{**a, "iscrowd": 0} for a in content["annotations"]]}
    assert score(content, results).values != score(without, results).values
    content, results = make("no size", 0)
    without = {**content, "annotations": [a for a in content["annotations"] if min(a["bbox"][2:]) > 0]}
    assert score(content, results).values != score(without, results).values


@pytest.mark.parametrize("kind", ["plain", "crowds"])
def test_a_region_to_ignore_is_scored_as_a_crowd(kind: str) -> None:
    """pycocotools itself knows crowds alone: the reference has the regions as crowds."""
    content, results = make(kind, 7)
    marked, as_crowds = copy.deepcopy(content), copy.deepcopy(content)
    for entry, crowd in zip(marked["annotations"][::3], as_crowds["annotations"][::3], strict=True):
        entry["ignore"], crowd["iscrowd"] = 1, 1
    reference = by_pycocotools(as_crowds, results)
    found = score(marked, results)
    assert list(found.values.values()) == reference.stats.tolist()
    assert found.values != score(content, results).values


def test_an_object_without_a_size_is_missed_and_without_an_area_has_its_boxs() -> None:
    boxes = [[1, 1, 50, 50], [9, 9, 9, 0], [9, 9, -9, -9]]
    content: dict[str, Any] = {
        "images": [{"id": 3, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "c"}],
        "annotations": [{"id": i, "image_id": 3, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)],
    }
    row = {"image_id": 3, "category_id": 1, "bbox": [1, 1, 50, 50], "score": 0.5}
    found = score(content, [row]).values
    assert found["AR100"] == pytest.approx(1 / 3)
    assert (found["ARs"], found["ARm"]) == (0, 1)
    for entry, area in zip(content["annotations"], (2500, 0, 0), strict=True):
        entry |= {"area": area, "iscrowd": 0, "id": entry["id"] + 1}  # pycocotools takes the id 0 for "unmatched"
    assert list(found.values()) == by_pycocotools(content, [row]).stats.tolist()


@pytest.mark.parametrize("count", [1, 5])
def test_on_some_of_the_images(count: int) -> None:
    content, results = make("plain", 9)
    ids = [image["id"] for image in content["images"]][:count]
    reference = by_pycocotools(content, results, sorted(ids))
    found = score(content, results, ids)
    assert list(found.values.values()) == reference.stats.tolist()
    assert found.images == count


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("chosen", [slice(0, 1), slice(1, None), slice(None, None, -1)])
def test_only_some_of_the_classes(kind: str, chosen: slice) -> None:
    content, results = make(kind, 5)
    category_ids = tuple(category["id"] for category in content["categories"])[chosen]
    reference = by_pycocotools(content, results, category_ids=tuple(sorted(category_ids)))
    truth, found = parse_ground_truth(content), parse_results(results, "results")
    scored = metrics.score(truth, found, kept=DetectionFilter(category_ids=category_ids))
    assert list(scored.values.values()) == reference.stats.tolist()
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert list(scored.per_class) == [names[category_id] for category_id in sorted(category_ids)]
    assert scored.problems == ()


def test_results_below_the_least_score_do_not_count() -> None:
    content, results = make("plain", 5)
    reference = by_pycocotools(content, [result for result in results if result["score"] >= 0.5])
    found = parse_results(results, "results")
    scored = metrics.score(parse_ground_truth(content), found, kept=DetectionFilter(min_score=0.5))
    assert list(scored.values.values()) == reference.stats.tolist()
    assert scored.values != score(content, results).values


def test_the_order_of_images_does_not_matter() -> None:
    content, rows = make("plain", 3)
    results = parse_results(rows, "results")
    ids = [image["id"] for image in content["images"]]
    shuffled = join_results(take(results, results.image_ids == image_id) for image_id in reversed(ids))
    truth = parse_ground_truth(content)
    assert metrics.score(truth, shuffled).values == metrics.score(truth, results).values == score(content, rows).values


def test_results_of_other_categories() -> None:
    content, rows = make("plain", 3)
    stranger = {**rows[0], "category_id": 4}
    found = score(content, [*rows, stranger])
    assert found.values == score(content, rows).values
    assert found.problems == ("1 × result of a category that the annotations lack, left out: category 4",)
    with pytest.raises(Exception, match="all 2 results are of categories that the annotations lack"):
        score(content, [stranger] * 2)


def test_memory_does_not_grow_with_the_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither joining, nor sorting, nor scoring holds the detections of all images."""
    for module, name, value in (
        (row_store, "BYTES_HELD", 1 << 16),
        (results_module, "PART", 4096),
        (scoring, "PART", 4096),
        (matching, "IMAGES_AT_A_TIME", 32),
    ):
        monkeypatch.setattr(module, name, value)
    few, many = peak_of_scoring(500), peak_of_scoring(1500)
    assert (many - few) / 1000 < 500, "bytes per image; its detections take 5600 in results and 2900 in matches"


def peak_of_scoring(images: int) -> int:
    """Most bytes of Python and NumPy while detections of these many images are joined and scored."""
    each = 100
    annotations = [
        {"id": i, "image_id": i, "category_id": i % 4, "bbox": [10.0, 10.0, 50.0, 50.0]} for i in range(images)
    ]
    content = {
        "images": [{"id": i, "height": 480, "width": 640} for i in range(images)],
        "categories": [{"id": c, "name": f"c{c}"} for c in range(4)],
        "annotations": annotations,
    }
    truth, rng = parse_ground_truth(content), np.random.default_rng(0)

    def found(image_id: int) -> Results:
        boxes = rng.uniform(1, 100, (each, 4))
        boxes[0] = 10, 10, 50, 50
        return Results(np.full(each, image_id), np.arange(each) % 4, boxes, rng.random(each))

    tracemalloc.start()
    try:
        results = join_results((found(i) for i in reversed(range(images))), truth.image_ids)
        values = metrics.score(truth, results).values
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (np.diff(results.image_ids) >= 0).all()
    assert len(results) == each * images
    assert values["AP"] > 0
    return peak


def test_matches_are_read_twice_and_not_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr(scoring, "release", lambda rows: reads.append(len(rows)))
    content, results = make("one class", 3)
    truth = parse_ground_truth(content)
    scoring.precision_recall(truth, join_results([parse_results(results, "results")]))
    assert len(reads) == 2, "the matched ones, and the misses between them"
