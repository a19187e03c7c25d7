"""Results as tools write them: masks, texts and floats as ids, wrapped lists, JSON Lines. Ids come back as written."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.coco import CocoDataset, CocoError, load_coco, load_ground_truth, load_results, parse_results, score
from runtime.coco.command import main
from runtime.coco.evaluation import score_detector
from runtime.coco.results_files import write_results
from runtime.coco.results_parquet import load_parquet, write_parquet
from runtime.detection_filter import DetectionFilter
from runtime.detector import Detector
from runtime.errors import UserError

from .test_evaluate import make_dataset

BOX = [10.0, 12.0, 60.0, 44.5]
ROW = {"image_id": 3, "category_id": 7, "bbox": BOX, "score": 0.5}
WHERE = {"image_id": 3, "category_id": 7}


def data_set(
    folder: Path, image_ids: tuple[Any, ...] = (3, 4), names: tuple[str, ...] = ("a.jpg", "b.jpg")
) -> CocoDataset:
    """Two images with one object each, of the categories 7 red and 9 other."""
    folder.mkdir(exist_ok=True)
    path = folder / "set.json"
    images = [
        {"id": given, "file_name": name, "height": 100, "width": 120}
        for given, name in zip(image_ids, names, strict=True)
    ]
    content = {
        "images": images,
        "annotations": [
            {"id": number, "image_id": given, "category_id": 7, "bbox": BOX, "area": BOX[2] * BOX[3], "iscrowd": 0}
            for number, given in enumerate(image_ids, 1)
        ],
        "categories": [{"id": 7, "name": "red"}, {"id": 9, "name": "other"}],
    }
    path.write_text(json.dumps(content))
    return load_coco(path, folder)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return data_set(tmp_path)


def code_of(box: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, width, height = box
    pixels = np.zeros((100, 120), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    return mask.encode(pixels)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"image_id": 3.0},
        {"image_id": "3"},
        {"category_id": 7.0},
        {"category_id": "7"},
        {"score": "0.5"},
        {"bbox": ["10", 12, 60, "44.5"]},
        {"id": 1, "area": 9.0, "iscrowd": 0, "segmentation": [], "extra": {"a": [None]}},
        {"segmentation": {"size": [1, 1], "counts": "damaged, but not needed"}},
    ],
)
def test_what_means_one_thing_is_read(change: dict[str, Any], dataset: CocoDataset) -> None:
    for known in (None, dataset):
        assert list(parse_results([{**ROW, **change}], "r.json", known)) == [ROW]


def test_a_category_may_be_named(dataset: CocoDataset) -> None:
    assert list(parse_results([{**ROW, "category_id": "red"}], "r.json", dataset)) == [ROW]


@pytest.mark.parametrize("box", [{}, {"bbox": None}, {"bbox": []}])
def test_a_mask_without_a_box_gets_the_box_of_pycocotools(box: dict[str, Any], dataset: CocoDataset) -> None:
    code = code_of((10, 12, 60, 44))
    code["counts"] = code["counts"].decode()
    (found,) = parse_results([{**WHERE, "score": 0.5, "segmentation": code, **box}], "r.json", dataset)
    assert found["bbox"] == mask.toBbox(code).tolist() == [10, 12, 60, 44]


def test_polygons_without_a_box_get_the_box_around_them(dataset: CocoDataset) -> None:
    rows = [{**WHERE, "score": 0.5, "segmentation": [[10, 12, 70, 12, 70, 56.5]]}]
    assert list(parse_results(rows, "r.json", dataset)) == [ROW]


@pytest.mark.parametrize("seed", range(3))
def test_masks_score_as_in_pycocotools(seed: int, tmp_path: Path) -> None:
    """Its own reading of masks: boxes around them, and their areas instead of the boxes' for small, medium, large."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 150, "width": 180} for i in range(1, 9)],
        "categories": [{"id": 7, "name": "red"}, {"id": 9, "name": "other"}],
        "annotations": [],
    }
    rows: list[dict[str, Any]] = []
    for image in content["images"]:
        for _ in range(5):
            x, y, w, h = (int(value) for value in (*rng.integers(0, 70, 2), *rng.integers(20, 110, 2)))
            place = {"image_id": image["id"], "category_id": int(rng.choice([7, 9]))}
            pixels = np.zeros((150, 180), np.uint8, order="F")
            pixels[y : min(150, y + h), x : min(180, x + w)] = rng.random() < 0.95
            pixels[y + 2 : y + h - 2, x + 2 : x + int(w * rng.random())] = 0
            code = mask.encode(pixels)
            code["counts"] = code["counts"].decode()
            rows.append({**place, "segmentation": code, "score": float(rng.random())})
            box = (np.array([x, y, w, h]) + rng.normal(0, 1.5, 4)).clip(0).tolist()
            entry = {"id": len(rows), **place, "bbox": box, "area": 0.8 * box[2] * box[3], "iscrowd": 0}
            content["annotations"].append(entry)
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
        scorer = COCOeval(reference, reference.loadRes(json.loads(json.dumps(rows))), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    truth, found = load_ground_truth(path), parse_results(rows, "r.json", load_coco(path, tmp_path))
    assert list(score(truth, found).values.values()) == scorer.stats.tolist()
    kept = score(truth, found, kept=DetectionFilter(min_score=0.3)).values
    again = parse_results([row for row in rows if row["score"] >= 0.3], "r.json")
    assert kept == score(truth, again).values
    assert kept != score(truth, replace(again, areas=None)).values, "else this shows little"


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ([], 0),
        ({"results": [ROW, ROW]}, 2),
        ({"info": {}, "predictions": [ROW]}, 1),
        ({"detections": []}, 0),
        (ROW, 1),
    ],
)
def test_a_list_in_an_object_is_read(content: Any, count: int, dataset: CocoDataset, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    assert list(load_results(path, dataset)) == [ROW] * count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": [ROW]}, "the list under 'annotations' has the results, write that list alone"),
        ({"results": [ROW], "predictions": [ROW]}, "not COCO results"),
        ({"3": [ROW]}, "the list under '3'"),
        ({}, "expected a list of"),
        (None, "expected a list of"),
        ([[ROW]], "result 1 of 1 is not an object"),
        ([{**ROW, "score": "high"}], "result 1 of 1 has score 'high', expected a finite number"),
        ([{**ROW, "score": True}], "expected a finite number"),
        ([ROW, {**ROW, "image_id": 999}, {**ROW, "image_id": "x"}], "2 of 3 results .*: result 2 has image_id 999"),
        ([{**ROW, "image_id": None}], "1 of 1 results .*: result 1 has image_id None"),
        ([{**ROW, "image_id": 10**400}], "has image_id a number of about 401 digits"),
        ([{**ROW, "category_id": "blue"}] * 2, "all 2 results are of categories that the annotations lack"),
        ([{**WHERE, "score": 1, "segmentation": {"size": [0, 9], "counts": "0"}}], "its mask cannot be read: the mask"),
        ([{**WHERE, "score": 1, "segmentation": {"size": [9, 9], "counts": "ooo"}}], "counts are damaged"),
        ([{**WHERE, "score": 1}], "has bbox None"),
    ],
)
def test_what_is_doubtful_is_one_line(content: Any, message: str, dataset: CocoDataset) -> None:
    with pytest.raises(CocoError, match=message) as raised:
        parse_results(content, "r.json", dataset)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_category_that_the_annotations_lack_is_left_out_and_named(dataset: CocoDataset) -> None:
    found = parse_results([ROW, {**ROW, "category_id": "blue"}], "r.json", dataset)
    assert list(found) == [ROW]
    assert found.problems == ("1 × result of a category that the annotations lack, left out: category 'blue'",)


@pytest.mark.parametrize(
    "ids", [("a", "b"), ("a.jpg", "b.jpg"), ("sub/b/a", "sub/b/b"), ("/data/val/a.jpg", r"C:\val\b.jpg")]
)
def test_images_are_found_by_file_name(ids: tuple[str, str], tmp_path: Path) -> None:
    """Ultralytics' predictions.json has file names without suffix as image ids."""
    dataset = data_set(tmp_path, names=("sub/b/a.jpg", "sub/b/b.jpg"))
    found = parse_results([{**ROW, "image_id": name} for name in ids], "r.json", dataset)
    assert found.image_ids.tolist() == [3, 4]
    assert "images are found by their file names" in found.problems[0]
    by_key = [{**ROW, "image_id": 0, "file_name": name} for name in ids]
    assert parse_results(by_key, "r.json", dataset).image_ids.tolist() == [3, 4]


def test_images_are_found_by_a_number_as_file_name_only_where_all_are(tmp_path: Path) -> None:
    dataset = data_set(tmp_path, names=("000004.jpg", "000051.jpg"))
    rows = [{**ROW, "image_id": number} for number in (4, 51)]
    assert parse_results(rows, "r.json", dataset).image_ids.tolist() == [3, 4]
    assert parse_results(rows[:1], "r.json", dataset).image_ids.tolist() == [4], "an id of the annotations"
    with pytest.raises(CocoError, match="1 of 2 results are of images that the annotations lack"):
        parse_results([rows[1], ROW], "r.json", dataset)
    twice = data_set(tmp_path, names=("x/000051.jpg", "y/000051.jpg"))
    with pytest.raises(CocoError, match="images that the annotations lack"):
        parse_results(rows[1:], "r.json", twice)


def test_a_text_that_is_one_images_id_and_anothers_name_is_doubtful(tmp_path: Path) -> None:
    rows = [{**ROW, "image_id": "0003"}]
    dataset = data_set(tmp_path, names=("0003.jpg", "0004.jpg"))
    assert parse_results(rows, "r.json", dataset).image_ids.tolist() == [3]
    other = data_set(tmp_path, names=("0004.jpg", "0003.jpg"))
    with pytest.raises(CocoError, match="result 1 has image_id '0003', the id of one image as a number and the file"):
        parse_results(rows, "r.json", other)
    texts = data_set(tmp_path, image_ids=("0003", "0004"), names=("0004.jpg", "0003.jpg"))
    assert parse_results(rows, "r.json", texts).image_ids.tolist() == texts.image_ids[:1].tolist()


def test_json_lines(dataset: CocoDataset, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n")
    assert list(load_results(path, dataset)) == [ROW, ROW]
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(f"{json.dumps(ROW)}\r\n{json.dumps(ROW)}", encoding=encoding)
        assert list(load_results(path, dataset)) == [ROW, ROW]
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)[:20]}")
    with pytest.raises(CocoError, match="line 2 is not valid JSON"):
        load_results(path, dataset)
    path.write_text("0 0.5 0.5 0.1 0.2\n")
    with pytest.raises(CocoError, match=r"this looks like YOLO's labels of one image, not COCO's results$"):
        load_results(path, dataset)
    path.write_bytes(b"\xff\xfe\n{}")
    with pytest.raises(CocoError, match="the results are not valid JSON"):
        load_results(path, dataset)


IDS = [("scene-1", "scene-2"), (2**63, 2**64 - 1), (3.0, 4.0), ("0003", "0004"), ("ä\ud800", 4)]


@pytest.mark.parametrize("ids", IDS)
def test_ids_come_back_as_they_were_written(ids: tuple[Any, Any], tmp_path: Path) -> None:
    dataset = data_set(tmp_path, image_ids=ids)
    rows = [{**ROW, "image_id": given} for given in ids]
    found = parse_results(rows, "r.json", dataset)
    assert found.image_ids.tolist() == dataset.image_ids.tolist()
    assert found.problems == ()
    write_results(tmp_path / "r.json", found, dataset)
    written = json.loads((tmp_path / "r.json").read_text())
    assert written == rows
    assert list(load_results(tmp_path / "r.json", dataset)) == list(found)


@pytest.mark.parametrize("ids", IDS[:-1])
def test_ids_come_back_from_parquet_too(ids: tuple[Any, Any], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="writes Parquet")
    dataset = data_set(tmp_path, image_ids=ids)
    found = parse_results([{**ROW, "image_id": given} for given in ids], "r.json", dataset)
    write_parquet(tmp_path / "r.parquet", found, dataset)
    assert tuple(parquet.read_table(tmp_path / "r.parquet").column("image_id").to_pylist()) == ids
    assert list(load_parquet(tmp_path / "r.parquet", dataset)) == list(found)


def test_the_command_writes_ids_as_they_were_in_every_format(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="writes Parquet")
    dataset = make_dataset(tmp_path / "set")
    with Detector(models["fp32"], backend="cpu", threads=1) as detector:
        reference = score_detector(detector, dataset)
    content = json.loads(dataset.json_path.read_text())
    for entry in (*content["images"], *content["annotations"]):
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = f"scene-{entry[key]}"
    for entry in (*content["categories"], *content["annotations"]):
        key = "category_id" if "category_id" in entry else "id"
        entry[key] = f"kind-{entry[key]}"
    dataset.json_path.write_text(json.dumps(content))
    model, figures = str(models["fp32"]), tmp_path / "f.json"
    base = ["--annotations", str(dataset.json_path), "--images", str(dataset.root)]
    one = [*base, "--backend", "cpu", "--threads", "1"]
    parts = [str(tmp_path / f"part{index}.json") for index in range(2)]
    for index, part in enumerate(parts):
        assert main([model, *one, "--shard", f"{index}/2", "--results-out", part]) == 0
    merged = ["--results", *parts, *base[:2]]
    for suffix in ("json", "parquet"):
        for number, given in enumerate(([model, *one], merged)):
            out = tmp_path / f"r{number}.{suffix}"
            assert main([*given, "--results-out", str(out), "--json", str(figures)]) == 0
            assert json.loads(figures.read_text())["AP"] == reference.metrics.values["AP"]
            assert main(["--results", str(out), *base[:2], "--json", str(figures)]) == 0
            assert json.loads(figures.read_text())["AP"] == reference.metrics.values["AP"]
    written = json.loads((tmp_path / "r0.json").read_text())
    assert {row["image_id"] for row in written} == {f"scene-{number}" for number in range(1, 7)}
    assert {row["category_id"] for row in written} == {"kind-7"}
    assert json.loads((tmp_path / "r1.json").read_text()) == written
    assert main(["--results", str(tmp_path / "r0.json"), *base[:2], "--classes", "kind-9", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["per_class"] == {"other": -1}
    with pytest.raises(UserError, match=r"class .1.: no such category .*; known: kind-7 red, kind-9 other"):
        main(["--results", str(tmp_path / "r0.json"), *base[:2], "--classes", "1"])


@pytest.mark.parametrize("more", [[], ["--json", "f.json"]])
def test_a_test_set_without_results_out_is_an_error(
    more: list[str], models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = as_test_set(make_dataset(tmp_path / "set"))
    base = ["--annotations", str(dataset.json_path), "--images", str(dataset.root)]
    with pytest.raises(UserError, match=r"has no annotations, .*: there is nothing to score; give --results-out FILE"):
        main([str(models["fp32"]), *base, *more])


def as_test_set(dataset: CocoDataset) -> CocoDataset:
    content = json.loads(dataset.json_path.read_text())
    del content["annotations"]
    dataset.json_path.write_text(json.dumps(content))
    return load_coco(dataset.json_path, dataset.root)


def test_a_test_sets_results_are_written_and_not_scored(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = as_test_set(make_dataset(tmp_path / "set"))
    out, base = tmp_path / "r.json", ["--annotations", str(dataset.json_path), "--images", str(dataset.root)]
    assert main([str(models["fp32"]), *base, "--results-out", str(out), "--backend", "cpu", "--threads", "1"]) == 0
    assert "has no annotations: nothing to score; 6 detections → " in capsys.readouterr().out
    assert len(json.loads(out.read_text())) == 6
