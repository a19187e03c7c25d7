from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from runtime.coco.results import Results, join_results, results_of_image, take
from runtime.coco.results_files import load_results, parse_results, write_results
from runtime.detections import Detections, empty_detections

FOUND = Detections(
    np.array([[1, 2, 4, 6.1234567], [0, 0, 1, 1]], np.float32), np.array([0.9, 0.1], np.float32), np.array([1, 0])
)
ENTRIES = [
    {"image_id": 2, "category_id": 17, "bbox": [1.0, 2.0, 3.0, 4.123], "score": 0.9},
    {"image_id": 2, "category_id": 3, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.1},
]


def equal(a: Results, b: Results) -> bool:
    return list(a) == list(b)


def test_nothing(tmp_path: Path) -> None:
    nothing = results_of_image(2, empty_detections(), (3, 17))
    assert list(nothing) == list(join_results([])) == []
    write_results(tmp_path / "r.json", nothing)
    assert json.loads((tmp_path / "r.json").read_text()) == []


def test_entries_are_those_of_a_results_file(tmp_path: Path) -> None:
    results = results_of_image(2, FOUND, (3, 17))
    assert list(results) == ENTRIES
    assert results[0] == ENTRIES[0]
    assert results[-1] == ENTRIES[1]
    assert results[:1] == ENTRIES[:1]
    assert equal(parse_results(ENTRIES, "results"), results)
    write_results(tmp_path / "r.json", results)
    assert (tmp_path / "r.json").read_text() == json.dumps(ENTRIES)


def test_what_is_written_reads_back_to_the_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 10_000
    corners = rng.uniform(0, 600, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 300, (count, 2))], axis=1).astype(np.float32)
    found = Detections(boxes, rng.random(count, np.float32), rng.integers(0, 2, count).astype(np.int32))
    results = results_of_image(9, found, (3, 17), box_growth=(0.0, 0.0, 1.0, 1.0))
    write_results(tmp_path / "r.json", results)
    again = load_results(tmp_path / "r.json")
    np.testing.assert_array_equal(again.boxes, results.boxes)
    np.testing.assert_array_equal(again.scores, results.scores)
    np.testing.assert_allclose(results.boxes[:, 2:], boxes[:, 2:] - boxes[:, :2] + 1, atol=6e-4)
    assert len(json.dumps(results[0]["bbox"])) < 40


def test_sorting_by_image_keeps_the_order_within_one() -> None:
    parts = [results_of_image(image_id, FOUND, (3, 17)) for image_id in (4, 9, 1)]
    results = join_results(parts, np.array([9, 1, 3, 4]))
    assert results.image_ids.tolist() == [9, 9, 1, 1, 4, 4]
    assert results.category_ids.tolist() == [17, 3] * 3
    assert equal(take(results, results.image_ids == 9), parts[1])
