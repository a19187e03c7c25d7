"""Images that Parquet files name or hold: a row per image, with a column `path`, `bytes`, or `image` with both.

`path` alone names files. `bytes` holds whole JPEG or PNG files, which are read a row group at a time; `image` is a
struct of the two, as Hugging Face's data sets have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..parquet import import_parquet

SUFFIX = ".parquet"


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
    names = _names(_open(path), path)
    return "bytes" in names


def named_paths(path: Path) -> list[Path]:
    """The files that the rows name, in order. Raises UserError."""
    table = _open(path).read(columns=["path"])
    return [Path(name) for name in table.column("path").to_pylist()]


def row_groups(path: Path) -> list[RowGroup]:
    """The file's row groups, in order, without empty ones. Raises UserError."""
    metadata = _open(path).metadata
    groups = [RowGroup(str(path), i, metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
    return [group for group in groups if group.rows]


def read_group(group: RowGroup) -> list[tuple[str, bytes]]:
    """Name and bytes of each image of a row group; a row without a name gets its number. Raises UserError."""
    file = _open(Path(group.file))
    where = "image" if "image" in file.schema_arrow.names else None
    names = _names(file, Path(group.file))
    table = file.read_row_group(
        group.number, columns=[where] if where else [n for n in ("path", "bytes") if n in names]
    )
    if where:
        table = table.flatten().rename_columns([name.removeprefix("image.") for name in table.flatten().column_names])
    data = table.column("bytes").to_pylist()
    paths = table.column("path").to_pylist() if "path" in names else [None] * len(data)
    first = sum(one.rows for one in row_groups(Path(group.file)) if one.number < group.number)
    unnamed = Path(group.file).stem
    return [
        (path or f"{unnamed}[{first + index}]", content or b"")
        for index, (path, content) in enumerate(zip(paths, data, strict=True))
    ]


def _open(path: Path) -> Any:
    arrow, parquet = import_parquet()
    try:
        return parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(
            f"{path}: cannot read this Parquet file ({reason}); check the path, or write it again"
        ) from error


def _names(file: Any, path: Path) -> set[str]:
    """Which of "path" and "bytes" the rows have."""
    schema = file.schema_arrow
    columns = set(schema.names)
    if _has_struct(file):
        columns = {field.name for field in schema.field("image").type}
    if not columns & {"path", "bytes"}:
        raise UserError(
            f"{path}: no column of images (it has {', '.join(schema.names)}); expected path, bytes, or image with both"
        )
    return columns & {"path", "bytes"}


def _has_struct(file: Any) -> bool:
    schema = file.schema_arrow
    return "image" in schema.names and str(schema.field("image").type).startswith("struct")
