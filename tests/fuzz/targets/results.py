"""Results files (JSON and Parquet), and the parts of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from pyarrow import parquet

from runtime.coco import GroundTruth, Results, load_ground_truth, load_results, score
from runtime.coco.format import read_json
from runtime.coco.results_parquet import load_parquet
from runtime.coco.shards import merge_parts, parse_part

from ..mutation import changed, damaged, json_files
from ..seeds import results
from ..target import Target, require
from .reference import differences, figures, parsed


def _check(found: Results, truth: GroundTruth, content: object, seeds: Path) -> str:
    require(len(found) == len(found.image_ids) == len(found.boxes) == len(found.category_ids), "columns differ")
    require(bool(np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()), "numbers are not finite")
    ours = score(truth, found)
    require(all(-1 <= value <= 1 for value in ours.values.values()), f"metrics out of range: {ours.values}")
    theirs = figures(json.loads((seeds / "annotations.json").read_bytes()), content)
    # pycocotools drops a category that is written as a text.
    is_plain = isinstance(content, list) and all(type(one["category_id"]) is int for one in content)
    if theirs is not None and not ours.problems and is_plain and len(content) == len(found):
        wrong = differences(ours.values, theirs)
        require(not wrong, f"other figures than pycocotools: {wrong}")
    return f"{len(found)} results"


@st.composite
def _json_inputs(draw: DrawFn) -> dict[str, bytes]:
    return {"r.json": draw(json_files(results(), 3))}


def _read_json(folder: Path, seeds: Path) -> str:
    path = folder / "r.json"
    found, content = load_results(path), parsed(path.read_bytes())
    if isinstance(content, list):
        require(len(found) == len(content), f"{len(content)} results in the file, {len(found)} read")
    return _check(found, load_ground_truth(seeds / "annotations.json"), content, seeds)


@st.composite
def _parquet_inputs(draw: DrawFn, data: bytes) -> dict[str, bytes]:
    if draw(st.booleans()):
        return {"r.parquet": draw(damaged(data))}
    rows = draw(changed(results(), 3))
    return {"r.parquet": _as_parquet(rows, draw(st.sampled_from(("plain", "float", "text", "nulls", "large")))) or data}


def _as_parquet(rows: object, kind: str) -> bytes | None:
    """Rows as a Parquet file with columns of odd types; None where Arrow cannot hold them."""
    sink = pyarrow.BufferOutputStream()
    try:
        assert isinstance(rows, list)
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: [row.get(name) for row in rows] for name in names}
        if kind == "text":
            columns = {name: [None if v is None else str(v) for v in values] for name, values in columns.items()}
        if kind == "nulls":
            columns = {name: [None, *values[1:]] for name, values in columns.items()}
        table = pyarrow.table(columns)
        if kind == "float":
            table = table.set_column(0, table.column_names[0], table.column(0).cast(pyarrow.float32()))
        if kind == "large" and "bbox" in names:
            at = table.column_names.index("bbox")
            table = table.set_column(at, "bbox", table.column("bbox").cast(pyarrow.large_list(pyarrow.float32())))
        parquet.write_table(table, sink)
    except (AssertionError, AttributeError, TypeError, ValueError, OverflowError, IndexError, pyarrow.ArrowException):
        return None
    return sink.getvalue().to_pybytes()


def _read_parquet(folder: Path, seeds: Path) -> str:
    path = folder / "r.parquet"
    found = load_parquet(path)
    return _check(found, load_ground_truth(seeds / "annotations.json"), None, seeds)


@st.composite
def _part_inputs(draw: DrawFn, parts: list[bytes]) -> dict[str, bytes]:
    which = draw(st.integers(0, 1))
    files = {f"{index}.json": data for index, data in enumerate(parts)}
    files[f"{which}.json"] = draw(json_files(json.loads(parts[which]), 2))
    return files


def _read_parts(folder: Path, seeds: Path) -> str:
    paths = sorted(folder.iterdir())
    parts = [(path, parse_part(read_json(path, "results"), path)) for path in paths]
    truth = load_ground_truth(seeds / "annotations.json")
    run = merge_parts(parts, seeds / "annotations.json", truth.image_ids)
    require(set(run.results.image_ids.tolist()) <= set(run.image_ids), "results of images that no part has")
    require(set(run.image_ids) <= set(truth.image_ids.tolist()), "images that the data set lacks")
    score(truth, run.results, run.image_ids)
    return f"{len(run.results)} results of {len(run.image_ids)} images"


TARGETS = {
    "results": Target(lambda seeds: _json_inputs(), _read_json, 2, 50),
    "results in Parquet": Target(
        lambda seeds: _parquet_inputs((seeds / "results.parquet").read_bytes()), _read_parquet, 1, 25
    ),
    "parts of an evaluation": Target(
        lambda seeds: _part_inputs([(seeds / f"part{index}.json").read_bytes() for index in range(2)]),
        _read_parts,
        1.5,
        40,
    ),
}
