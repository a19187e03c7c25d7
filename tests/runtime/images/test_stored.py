"""Parquet files of images: every layout that is documented, and files that are none or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.detect import main as detect
from runtime.errors import UserError
from runtime.images.stored import RowGroup, holds_images, named_paths, read_group, row_groups

arrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")


def write(path: Path, columns: dict[str, Any], rows: int = 2) -> Path:
    parquet.write_table(arrow.table(columns), path, rows)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        {"path": ["a.jpg", "b/ü.png"]},
        {"path": ["a.jpg", "b/ü.png"], "label": [1, 2]},
        {"path": arrow.array(["a.jpg", "b/ü.png"], arrow.large_string())},
        {"path": arrow.array(["a.jpg", "b/ü.png"]).dictionary_encode()},
        {"image": [{"path": "a.jpg"}, {"path": "b/ü.png"}]},
    ],
)
def test_rows_that_name_files(columns: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", columns, 1)
    assert not holds_images(path)
    assert named_paths(path) == [Path("a.jpg"), Path("b/ü.png")]


@pytest.mark.parametrize("kind", [arrow.binary(), arrow.large_binary()])
def test_rows_that_hold_images(kind: Any, tmp_path: Path) -> None:
    data = arrow.array([b"1", None, b"3"], kind)
    path = write(tmp_path / "x.parquet", {"bytes": data, "path": [None, "b.jpg", "c.jpg"]})
    assert holds_images(path)
    assert row_groups(path) == [RowGroup(str(path), 0, 2), RowGroup(str(path), 1, 1)]
    expected = [[("x[0]", b"1"), ("b.jpg", b"")], [("c.jpg", b"3")]]
    assert [read_group(group) for group in row_groups(path)] == expected
    rows = [{"bytes": b"1", "path": None}, {"bytes": None, "path": "b.jpg"}, None]
    path = write(tmp_path / "y.parquet", {"image": rows})
    assert [read_group(group) for group in row_groups(path)] == [[("y[0]", b"1"), ("b.jpg", b"")], [("y[2]", b"")]]
    path = write(tmp_path / "z.parquet", {"image": [{"bytes": b"1", "path": None}]})
    assert read_group(row_groups(path)[0]) == [("z[0]", b"1")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"file": ["a.jpg"]}, r"no column of images \(it has file\)"),
        ({"path": [1, 2]}, "the column path is int64; expected strings in path"),
        ({"bytes": [1, 2]}, "the column bytes is int64; expected strings in path, and binary in bytes"),
        ({"bytes": ["a.jpg"]}, "the column bytes is string"),
        ({"bytes": [b"1"], "path": [1]}, "the column path is int64"),
        ({"image": [{"path": "a.jpg", "bytes": "text"}]}, "the column bytes is string"),
        ({"path": ["a.jpg", None]}, "row 1 names no file"),
        ({"path": ["", "b.jpg"]}, "row 0 names no file"),
        ({"path": [None]}, "row 0 names no file"),
        ({"path": arrow.array([], arrow.string())}, "no image in these Parquet files"),
    ],
)
def test_a_file_of_something_else_is_one_line(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(UserError, match=said) as raised:
        detect(["none.onnx", str(path), "-o", str(tmp_path / "out"), "--ray"])
    assert str(raised.value).startswith(f"{path}: ")


def test_a_folder_without_parquet_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    with pytest.raises(UserError, match=r"x\.parquet: no image in these Parquet files"):
        detect(["none.onnx", str(tmp_path / "x.parquet"), "-o", str(tmp_path / "out")])


@pytest.mark.parametrize("column", ["path", "bytes"])
def test_damaged_content_is_one_line(column: str, tmp_path: Path) -> None:
    values = [f"{number:04}" if column == "path" else f"{number:04}".encode() for number in range(100)]
    path = write(tmp_path / "x.parquet", {column: values}, 100)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    with pytest.raises(UserError, match=r"x\.parquet: cannot read this Parquet file \(.*\); check"):
        named_paths(path) if column == "path" else read_group(RowGroup(str(path), 0, 100))
