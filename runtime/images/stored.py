"""Images that Parquet files name or hold: a row per image, with a column `path`, `bytes`, or `image` with both.

`path` alone names files. `bytes` holds whole image files, which are read a row group at a time; `image` is a
struct of the two, as Hugging Face's data sets have it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..parquet import import_parquet

SUFFIX = ".parquet"
# Arrow's types, by column; "null" is a column without any value.
_TYPES = {
    "path": r"^(null|(dictionary<values=)?(large_)?string(_view)?\b)",
    "bytes": r"^(null|(large_|fixed_size_)?binary)",
}


class RowGroup(NamedTuple):
    """A part of a Parquet file that is read as a whole."""

    file: str
    number: int
    rows: int


def find_parquet(given: Path) -> list[Path]:
    """The Parquet files of an input: the file itself, or those of a folder named *.parquet."""
    return sorted(given.glob(f"*{SUFFIX}")) if given.is_dir() else [given]


def holds_images(path: Path) -> bool:
    """Whether the rows hold images, not only their names. Raises UserError for a file without either."""
    return "bytes" in _names(_open(path), path)


def named_paths(path: Path) -> list[Path]:
    """The files that the rows name, in order. Raises UserError, also for a row that names none."""
    file = _open(path)
    _names(file, path)
    names = _values(file, path, ["path"])["path"]
    for row, name in enumerate(names):
        if not name:
            raise UserError(f"{path}: row {row} names no file; leave such rows out")
    return [Path(name) for name in names]


def row_groups(path: Path) -> list[RowGroup]:
    """The file's row groups, in order, without empty ones. Raises UserError."""
    metadata = _open(path).metadata
    groups = [RowGroup(str(path), i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    return [group for group in groups if group.rows]


def read_group(group: RowGroup) -> list[tuple[str, bytes]]:
    """Name and bytes of each image of a row group; a row without a name gets its number. Raises UserError."""
    path = Path(group.file)
    file = _open(path)
    columns = _values(file, path, sorted(_names(file, path)), group.number)
    data = columns["bytes"]
    paths = columns.get("path", [None] * len(data))
    first = sum(one.rows for one in row_groups(path) if one.number < group.number)
    return [
        (name or f"{path.stem}[{first + index}]", content or b"")
        for index, (name, content) in enumerate(zip(paths, data, strict=True))
    ]


def _open(path: Path) -> Any:
    arrow, parquet = import_parquet()
    try:
        return parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or ["unknown"])[0]
    return UserError(f"{path}: cannot read this Parquet file ({reason}); check the path, or write it again")


def _values(file: Any, path: Path, names: list[str], group: int | None = None) -> dict[str, list[Any]]:
    """The values of columns by name, of a row group or of the whole file. Raises UserError for damaged content."""
    arrow, _ = import_parquet()
    prefix = "image." if _has_struct(file) else ""
    wanted = [prefix + name for name in names]
    try:
        table = file.read(columns=wanted) if group is None else file.read_row_group(group, columns=wanted)
        table = table.flatten() if prefix else table
        return {name: table.column(prefix + name).to_pylist() for name in names}
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _names(file: Any, path: Path) -> set[str]:
    """Which of "path" and "bytes" the rows have. Raises UserError where they have neither, or with other types."""
    schema = file.schema_arrow
    fields = schema.field("image").type if _has_struct(file) else schema
    types = {field.name: str(field.type) for field in fields if field.name in _TYPES}
    if not types:
        raise UserError(
            f"{path}: no column of images (it has {', '.join(schema.names)}); expected path, bytes, or image with both"
        )
    for name, given in types.items():
        if not re.search(_TYPES[name], given):
            raise UserError(f"{path}: the column {name} is {given}; expected strings in path, and binary in bytes")
    return set(types)


def _has_struct(file: Any) -> bool:
    schema = file.schema_arrow
    return "image" in schema.names and str(schema.field("image").type).startswith("struct")
