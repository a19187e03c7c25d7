from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from runtime.coco import (
    METRIC_NAMES,
    CocoError,
    CocoMetrics,
    load_ground_truth,
    load_results,
    metrics,
    parse_ground_truth,
    parse_results,
)
from runtime.coco.results import results_of_image
from runtime.detections import Detections

from .test_coco import SMALL, with_annotation

# The COCO API's own example (three decimals are given there).
COCO100 = {
    "AP": 0.505, "AP50": 0.697, "AP75": 0.573, "APs": 0.586, "APm": 0.519, "APl": 0.501,
    "AR1": 0.387, "AR10": 0.594, "AR100": 0.595, "ARs": 0.640, "ARm": 0.566, "ARl": 0.564,
}  # fmt: skip


def score(content: dict, results: list, image_ids: list[int] | None = None) -> CocoMetrics:
    return metrics.score(parse_ground_truth(content), parse_results(results, "r.json"), image_ids)


def perfect(content: dict) -> list[dict]:
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.9}
        for a in content["annotations"]
        if not a.get("iscrowd")
    ]


@pytest.fixture(scope="session")
def coco100(shared_dir: Path) -> tuple[Path, Path]:
    folder = shared_dir / "data" / "coco100"
    return folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"


def test_no_results_give_zero_and_print_nothing(capsys: pytest.CaptureFixture) -> None:
    found = score(SMALL, [])
    assert found.values["AP"] == found.values["AR100"] == 0
    assert tuple(found.values) == METRIC_NAMES
    assert found.images == 3
    assert capsys.readouterr() == ("", "")


def test_nothing_to_measure_is_minus_one() -> None:
    found = score({**SMALL, "annotations": []}, [])
    assert set(found.values.values()) == {-1}
    assert found.per_class == {"dog": -1, "cat": -1}


def test_perfect_results() -> None:
    found = score(SMALL, perfect(SMALL))
    assert found.values["AP"] == pytest.approx(1)
    assert found.values["APl"] == -1  # there is no large object but a crowd
    assert found.per_class == pytest.approx({"dog": 1, "cat": 1})
    assert score(json.loads(json.dumps(SMALL)), perfect(SMALL)).values == found.values


def test_the_coco_apis_own_example(coco100: tuple[Path, Path]) -> None:
    annotations, results = coco100
    found = metrics.score(load_ground_truth(annotations), load_results(results))
    assert {name: round(value, 3) for name, value in found.values.items()} == COCO100
    assert len(found.per_class) == 80
    measured = [value for value in found.per_class.values() if value >= 0]
    assert np.mean(measured) == pytest.approx(found.values["AP"])
    assert found.images == 100


def test_figures_equal_plain_pycocotools(coco100: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    """On a subset of the images, with spoilt scores: our own bookkeeping (ids, areas) changes nothing."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results_path = coco100
    results = json.loads(results_path.read_text())
    rng = np.random.default_rng(0)
    for result in results:
        result["score"] = float(rng.uniform())
    truth = COCO(str(annotations))
    scorer = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
    scorer.params.imgIds = sorted(truth.getImgIds())[10:60]
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    capsys.readouterr()
    found = score(json.loads(annotations.read_text()), results, scorer.params.imgIds)
    assert list(found.values.values()) == scorer.stats.tolist()
    assert found.images == 50


def test_inputs_are_left_as_they_are(coco100: tuple[Path, Path]) -> None:
    annotations = json.loads(coco100[0].read_text())
    results = json.loads(coco100[1].read_text())
    before = copy.deepcopy((annotations, results))
    score(annotations, results)
    assert (annotations, results) == before


def test_an_annotation_of_id_zero_counts() -> None:
    """Plain pycocotools takes a detection that matches annotation 0 for an unmatched one."""
    content = copy.deepcopy(SMALL)
    content["annotations"][0]["id"] = 0
    assert score(content, perfect(content)).values["AP"] == pytest.approx(1)


def test_annotations_without_area_or_crowd_flag_or_id() -> None:
    content = copy.deepcopy(SMALL)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            for key in ("id", "area", "iscrowd"):
                annotation.pop(key, None)
    assert score(content, perfect(content)).values == score(SMALL, perfect(SMALL)).values


@pytest.mark.parametrize("fields", [{"bbox": [float("nan"), 1, 2, 2]}, {"category_id": 4}])
def test_unusable_annotations_do_not_count(fields: dict) -> None:
    assert score(with_annotation(**fields), perfect(SMALL)).values == score(SMALL, perfect(SMALL)).values


def test_only_the_named_images_count() -> None:
    results = [result for result in perfect(SMALL) if result["image_id"] == 2]
    assert score(SMALL, results, [2]).values["AP"] == pytest.approx(1)
    wrong = [*results, {"image_id": 9, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 1.0}]
    assert score(SMALL, wrong, [2]).values["AP"] == pytest.approx(1)
    assert score(SMALL, wrong, [2, 9]).values["AP"] < 1


RESULT = {"image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (3, "result 2 of 2 is not an object"),
        ({**RESULT, "image_id": 77}, "has image_id 77, which the annotations lack"),
        ({**RESULT, "image_id": [2]}, r"has no integer image_id .\[2\]"),
        ({**RESULT, "image_id": 2**70}, "has no integer image_id"),
        ({**RESULT, "category_id": "dog"}, "has no integer category_id"),
        ({"image_id": 2, "category_id": 3, "score": 0.5}, "has bbox None"),
        ({**RESULT, "bbox": [1, 2, 3]}, r"has bbox \[1, 2, 3\]"),
        ({**RESULT, "bbox": [1, 2, 3, None]}, "expected finite numbers"),
        ({**RESULT, "score": float("nan")}, "has score nan, expected a finite number"),
        ({**RESULT, "score": None}, "has score None, expected a finite number"),
        ({**RESULT, "bbox": [1, 2, float("inf"), 1]}, "expected finite numbers"),
    ],
)
def test_malformed_results(result: object, message: str) -> None:
    with pytest.raises(CocoError, match=message):
        score(SMALL, [RESULT, result])


def test_results_of_other_categories() -> None:
    with pytest.raises(CocoError, match="all 2 results are of categories that the annotations lack"):
        score(SMALL, [{**RESULT, "category_id": 1}] * 2)
    found = score(SMALL, [RESULT, {**RESULT, "category_id": 1}])
    assert found.problems == ("1 × result of a category that the annotations lack, left out: category 1",)


def test_results_files(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(CocoError, match="cannot read the results: No such file"):
        load_results(path)
    path.write_text('[{"image_id": 1')
    with pytest.raises(CocoError, match="the results are not valid JSON"):
        load_results(path)
    path.write_text("{}")
    with pytest.raises(CocoError, match="not COCO results; expected a list of"):
        load_results(path)
    path.write_text("[]")
    assert len(load_results(path)) == 0


def test_results_of_image() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    assert len(results_of_image(2, nothing, (3, 17))) == 0
    found = Detections(
        np.array([[1, 2, 4, 6.1234567], [0, 0, 1, 1]], np.float32),
        np.array([0.9, 0.1], np.float32),
        np.array([1, 0], np.int32),
    )
    results = list(results_of_image(np.int64(2), found, (3, 17)))  # type: ignore[arg-type]
    assert results == [
        {"image_id": 2, "category_id": 17, "bbox": [1.0, 2.0, 3.0, 4.123], "score": 0.9},
        {"image_id": 2, "category_id": 3, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.1},
    ]
    assert json.loads(json.dumps(results)) == results
