"""COCO results in Parquet files: a row per result, with the columns image_id, category_id, bbox and score."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import atomic_path
from ..parquet import import_parquet
from .format import CocoError
from .results import Results, in_parts

SUFFIX = ".parquet"


def write_parquet(path: Path, results: Results) -> None:
    """Write results, a part at a time. Raises WriteError, and UserError without pyarrow."""
    arrow, parquet = import_parquet()
    schema = arrow.schema(
        [
            ("image_id", arrow.int64()),
            ("category_id", arrow.int64()),
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
            columns = [arrow.array(part.image_ids), arrow.array(part.category_ids), boxes, arrow.array(part.scores)]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


def load_parquet(path: Path) -> Results:
    """The results in a Parquet file. Raises CocoError for a file without them, and UserError without pyarrow."""
    arrow, parquet = import_parquet()
    try:
        table = parquet.read_table(path, columns=["image_id", "category_id", "bbox", "score"])
        columns = [np.asarray(table.column(name).to_numpy()) for name in ("image_id", "category_id", "score")]
        fours = table.column("bbox").cast(arrow.list_(arrow.float64(), 4)).combine_chunks()
        boxes = np.array(fours.flatten()).reshape(len(table), 4)
        image_ids, category_ids = (_exactly(column, np.int64) for column in columns[:2])
        boxes, scores = _exactly(boxes, np.float64), _exactly(columns[2], np.float64)
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CocoError(
            f"{path}: no results in this Parquet file ({reason}); expected the columns image_id, category_id, bbox "
            "[x, y, width, height] and score"
        ) from error
    return Results(image_ids, category_ids, boxes, scores)


def _exactly(values: np.ndarray, dtype: type) -> np.ndarray:
    """The values as this type. Raises ValueError where one is missing, not finite, or another number then."""
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise ValueError("a value is missing or no finite number")
    converted: np.ndarray = values.astype(dtype)
    if not (converted == values).all():
        raise ValueError("an id is no whole number")
    return converted
