from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.coco import CocoDataset, CocoError, parse_results
from runtime.coco.results import results_of_image, results_to_detections, take
from runtime.coco.results_parquet import write_parquet
from runtime.detections import Detections
from runtime.images import ImageError
from runtime.show import draw_results, main

from .coco.test_evaluate import make_dataset


def a_result(image_id: int, score: float = 0.9) -> dict:
    return {"image_id": image_id, "category_id": 7, "bbox": [4.0, 6.0, 20.0, 30.0], "score": score}


def show(results: list[dict], dataset: CocoDataset, out: Path, count: int, min_score: float) -> list[Path]:
    return draw_results(parse_results(results, "results"), dataset, out, count, min_score)


def test_no_results_draw_the_ground_truth_only(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    written = show([], dataset, tmp_path / "out", count=3, min_score=0.3)
    assert [path.name for path in written] == ["0_1.jpg", "3_4.jpg", "6_7.jpg"]


def test_detections_are_what_results_were_made_of() -> None:
    boxes = np.array([[1, 2, 30, 40], [5, 5, 6, 9]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.25], np.float32), np.array([1, 0], np.int32))
    results = results_of_image(3, found, (7, 9))
    again = results_to_detections(take(results, slice(None, None, -1)), (7, 9))
    np.testing.assert_allclose(again.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-6)
    np.testing.assert_array_equal(again.classes, found.classes)


def test_left_panel_has_the_detections_of_its_own_image(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    [plain, _] = show([], dataset, tmp_path / "plain", count=2, min_score=0.3)
    [drawn, other] = show([a_result(1), a_result(1, score=0.1)], dataset, tmp_path / "drawn", count=2, min_score=0.3)
    before, after = cv2.imread(str(plain)).astype(int), cv2.imread(str(drawn)).astype(int)
    changed = np.abs(before - after).max(axis=(0, 2)) > 60  # by column
    half = before.shape[1] // 2
    assert changed[:half].any()
    assert not changed[half:].any()
    np.testing.assert_array_equal(cv2.imread(str(other)), cv2.imread(str(tmp_path / "plain" / other.name)))


def test_an_unreadable_image_is_reported_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path)
    dataset.path(0).write_bytes(b"")
    assert len(show([], dataset, tmp_path / "out", count=2, min_score=0.3)) == 1
    assert "0.png" in capsys.readouterr().err
    dataset.path(6).unlink()
    with pytest.raises(ImageError, match="none of the images"):
        show([], dataset, tmp_path / "out", count=2, min_score=0.3)


def test_results_of_other_annotations_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    with pytest.raises(CocoError, match="image_id 99"):
        show([a_result(99)], dataset, tmp_path / "out", count=1, min_score=0.3)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path)
    results = tmp_path / "results.json"
    results.write_text(json.dumps([a_result(1)]))
    data = ("--annotations", str(dataset.json_path), "--images", str(dataset.root), "--out", str(tmp_path / "out"))
    assert main([str(results), *data, "--count", "3"]) == 0
    assert "3 images" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_the_command_reads_parquet_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    dataset, results = make_dataset(tmp_path), [a_result(1)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_parquet(tmp_path / "results.parquet", parse_results(results, "results"))
    for kind in ("json", "parquet"):
        data = ["--annotations", str(dataset.json_path), "--images", str(dataset.root), "--out", str(tmp_path / kind)]
        assert main([str(tmp_path / f"results.{kind}"), *data]) == 0
    drawn = [{path.name: path.read_bytes() for path in (tmp_path / kind).iterdir()} for kind in ("json", "parquet")]
    assert drawn[0] == drawn[1] != {}


def test_what_is_not_drawn_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset(tmp_path)
    content = json.loads(dataset.json_path.read_text())
    content["annotations"][0]["category_id"] = 99
    dataset.json_path.write_text(json.dumps(content))
    command = [str(tmp_path / "r.json"), "--annotations", str(dataset.json_path), "--images", str(dataset.root)]
    command += ["--out", str(tmp_path / "out"), "--count", "1"]
    for results, said in (
        ([a_result(1), {**a_result(1), "category_id": 98}], "1 × result of a category that the annotations lack"),
        ([], "there are no results in this file"),
    ):
        (tmp_path / "r.json").write_text(json.dumps(results))
        assert main(command) == 0
        printed = capsys.readouterr().err
        assert "1 × unknown category: annotation 1" in printed
        assert printed.count(said) == 1
