"""COCO results in Parquet files say what the JSON files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import CocoError, parse_results
from runtime.coco.command import main
from runtime.coco.results import empty_results
from runtime.coco.results_parquet import load_parquet, write_parquet
from runtime.errors import UserError

from .test_evaluate import make_dataset
from .test_evaluate_several import arguments

pyarrow = pytest.importorskip("pyarrow", reason="pip install 'atss-toolkit[ray]'")
parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'atss-toolkit[ray]'")


def entries(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(count)
    return [
        {
            "image_id": int(rng.integers(0, 2**62)),
            "category_id": int(rng.integers(0, 90)),
            "bbox": rng.uniform(-5, 4000, 4).round(3).tolist(),
            "score": float(rng.uniform()),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 40_000])
def test_what_is_written_is_read_bit_for_bit(count: int, tmp_path: Path) -> None:
    rows = entries(count)
    write_parquet(tmp_path / "r.parquet", parse_results(rows, "test") if rows else empty_results())
    assert list(load_parquet(tmp_path / "r.parquet")) == rows
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == rows, "other readers see the same"


def test_the_command_writes_and_scores_them(models: dict[str, Path], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    for name in ("r.json", "r.parquet"):
        assert main([str(models["fp32"]), *arguments(dataset, "--results-out", tmp_path / name)]) == 0
        scored = ["--results", str(tmp_path / name), "--annotations", str(dataset.json_path)]
        assert main([*scored, "--json", str(tmp_path / f"{name}.metrics")]) == 0
    assert list(load_parquet(tmp_path / "r.parquet")) == json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.parquet.metrics").read_bytes() == (tmp_path / "r.json.metrics").read_bytes()
    part = ["--shard", "0/2", "--results-out", str(tmp_path / "p.parquet")]
    with pytest.raises(SystemExit):
        main([str(models["fp32"]), *arguments(dataset, *part)])


GOOD: dict[str, list[Any]] = {"image_id": [1], "category_id": [7], "bbox": [[1.0, 2, 3, 4]], "score": [0.5]}


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": [None]},
        {"image_id": [1.5]},
        {"category_id": ["red"]},
        {"bbox": [[1.0, 2, 3]]},
        {"bbox": [None]},
        {key: [*values, *values] for key, values in GOOD.items()} | {"bbox": [[1.0, 2, 3, 4, 5, 6, 7, 8], []]},
        {"bbox": [[1.0, 2, 3, float("nan")]]},
        {"score": [float("inf")]},
        {"score": None},
    ],
)
def test_a_file_of_something_else_is_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.table(GOOD), path)
    assert list(load_parquet(path)) == [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}]
    parquet.write_table(pyarrow.table({k: v for k, v in {**GOOD, **change}.items() if v is not None}), path)
    with pytest.raises(
        CocoError, match=r"no results in this Parquet file .*; expected the columns|no integer .*; expected {image_id"
    ) as raised:
        load_parquet(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_a_missing_or_damaged_file_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CocoError, match="no results in this Parquet file"):
        load_parquet(path)


def test_a_parquet_file_is_given_alone(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    write_parquet(tmp_path / "a.parquet", empty_results())
    several = [str(tmp_path / "a.parquet"), str(tmp_path / "b.json")]
    with pytest.raises(UserError, match="a Parquet file holds all results and is given alone"):
        main(["--results", *several, "--annotations", str(dataset.json_path)])
