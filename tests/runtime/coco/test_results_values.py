"""The numbers of results files, from the largest to negative scores, and files that are no results."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.coco import CocoError, load_results, parse_results
from runtime.coco.command import main
from runtime.coco.results_files import write_results

from .test_results_files import ROW, data_set


@pytest.mark.parametrize("size", [10**30, 10**30 - 1, 1e30, -(10**30)])
def test_numbers_that_are_read_are_read_again_when_written(size: float, tmp_path: Path) -> None:
    """An integer of up to 1e30 is written as a float, which may be larger."""
    dataset = data_set(tmp_path / "d")
    results = parse_results([{**ROW, "bbox": [0, 0, size, 1]}], "r.json", dataset)
    write_results(tmp_path / "again.json", results, dataset)
    assert load_results(tmp_path / "again.json", dataset).boxes.tolist() == [[0.0, 0.0, float(size), 1.0]]
    with pytest.raises(CocoError, match="finite"):
        parse_results([{**ROW, "bbox": [0, 0, 10**31, 1]}], "r.json", dataset)


def test_negative_scores_count_as_pycocotools_counts_them(tmp_path: Path) -> None:
    """Logarithms of probabilities, which some tools write as scores."""
    dataset = data_set(tmp_path / "d")
    rows = [{**ROW, "score": -0.1}, {**ROW, "bbox": [60, 0, 5, 5], "score": -2.5}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    command = ["--annotations", str(dataset.json_path), "--results", str(tmp_path / "r.json")]
    assert main([*command, "--json", str(tmp_path / "f.json")]) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.json_path))
        reference = COCOeval(truth, truth.loadRes(str(tmp_path / "r.json")), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert json.loads((tmp_path / "f.json").read_text())["AP"] == reference.stats[0] > 0


@pytest.mark.parametrize(
    "start",
    [b"\x1f\x8b\x08\0", b"PK\x03\x04", b"PAR1", b"\x80\x04].", b"\x93NUMPY\x01\0", b"\xe9", b"\x08\x07\x12\xe9\0\0"],
)
def test_a_file_of_another_kind_is_called_what_it_is(start: bytes, tmp_path: Path) -> None:
    dataset = data_set(tmp_path / "d")
    path = tmp_path / "r.json"
    path.write_bytes(start)
    with pytest.raises(CocoError, match=r"gzip|ZIP|Parquet|pickle|NumPy|UTF-8$|no text") as caught:
        load_results(path, dataset)
    assert "cut short" not in str(caught.value)
