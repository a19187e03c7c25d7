"""COCO results in Parquet files: a row per result, with the columns image_id, category_id, bbox and score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from ..parquet import import_parquet
from .dataset import CocoDataset
from .format import CocoError
from .format.ids import MOST, whole_number
from .result_ids import has_plain_ids, with_ids
from .results import Results, in_parts
from .results_files import written_ids

SUFFIX = ".parquet"


def write_parquet(path: Path, results: Results, dataset: CocoDataset | None = None) -> None:
    """Write results, a part at a time, with ids as the data set's file has them.

    Ids that are not all integers of 64 bits become texts. Raises WriteError, and UserError without pyarrow.
    """
    arrow, parquet = import_parquet()
    images, categories = (None, None) if dataset is None else written_ids(dataset)
    schema = arrow.schema(
        [
            ("image_id", _type_of(images, arrow)),
            ("category_id", _type_of(categories, arrow)),
            ("bbox", arrow.list_(arrow.float64(), 4)),  # x, y, width, height
            ("score", arrow.float64()),
        ]
    )
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        for part in in_parts(results):
            boxes = arrow.FixedSizeListArray.from_arrays(arrow.array(part.boxes.reshape(-1)), 4)
            ids = [
                _ids(part.image_ids, images, schema.field("image_id").type, arrow),
                _ids(part.category_ids, categories, schema.field("category_id").type, arrow),
            ]
            writer.write_table(arrow.Table.from_arrays([*ids, boxes, arrow.array(part.scores)], schema=schema))


def _type_of(written: Mapping[int, Any] | None, arrow: Any) -> Any:
    """The type of a column of ids: integers where all of them are, else texts."""
    if written is None:
        return arrow.int64()
    numbers = [None if isinstance(value, str) else whole_number(value) for value in written.values()]
    for kind, least, most in ((arrow.int64(), -MOST, MOST), (arrow.uint64(), 0, 2 * MOST)):
        if all(number is not None and least <= number < most for number in numbers):
            return kind
    return arrow.string()


def _ids(numbers: np.ndarray, written: Mapping[int, Any] | None, column: Any, arrow: Any) -> Any:
    """A column of ids as written."""
    if written is None:
        return arrow.array(numbers)
    values = (written[number] for number in numbers.tolist())
    convert = str if column == arrow.string() else int
    return arrow.array([convert(value) for value in values], column)


def load_parquet(path: Path, dataset: CocoDataset | None = None) -> Results:
    """The results in a Parquet file, whose ids are found as `parse_results` does.

    Raises CocoError for a file without results, and UserError without pyarrow.
    """
    arrow, parquet = import_parquet()
    try:
        table = parquet.read_table(path, columns=["image_id", "category_id", "bbox", "score"])
        fours = table.column("bbox").cast(arrow.list_(arrow.float64(), 4)).combine_chunks()
        boxes = _finite(np.array(fours.flatten()).reshape(len(table), 4))
        scores = _finite(np.asarray(table.column("score").to_numpy()))
        ids = [table.column(name) for name in ("image_id", "category_id")]
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CocoError(
            f"{path}: no results in this Parquet file ({reason}); expected the columns image_id, category_id, bbox "
            "[x, y, width, height] and score"
        ) from error
    if all(arrow.types.is_int64(column.type) and not column.null_count for column in ids):
        image_ids, category_ids = (np.asarray(column.to_numpy()) for column in ids)
        if dataset is None or has_plain_ids(dataset, image_ids):
            return Results(image_ids, category_ids, boxes, scores)
    images, categories = (column.to_pylist() for column in ids)
    none = np.zeros(len(scores), np.int64)
    return with_ids(images, categories, [None] * len(scores), Results(none, none, boxes, scores), dataset, path)


def _finite(values: np.ndarray) -> np.ndarray:
    """The values as float64. Raises ValueError where one is missing or not finite."""
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise ValueError("a value is missing or no finite number")
    return values.astype(np.float64)
