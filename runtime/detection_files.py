r"""The files that `runtime.detect` writes. A format is a context manager that yields a DetectionWriter.

A row describes one image or frame: file, height, width, detections (a list of class, category_id, score, box_xyxy), and
of a frame its number and time_s. An input that could not be read is an entry of file and reason.

A byte of a file name that isn't UTF-8 is written as \udcXX. Python's JSON reader makes the character of it from which
`os.fsencode` makes the byte again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from tqdm import tqdm

from .detections import Detections
from .errors import UserError
from .files import as_utf8, atomic_path, write_error
from .manifest import Manifest
from .parquet import import_parquet

GROUP_ROWS = 1000  # of a Parquet file that are in memory at a time


def detection_row(image_hw: tuple[int, int], detections: Detections, manifest: Manifest) -> dict[str, Any]:
    """The fields that every row has beside "file"."""
    # The product of a float32 and 1000 or 10⁶ is exact in float64, so this gives what Python's `round` gives.
    scores = np.round(detections.scores.astype(np.float64), 6).tolist()
    boxes = np.round(detections.boxes.astype(np.float64), 3).tolist()
    return {
        "height": image_hw[0],
        "width": image_hw[1],
        "detections": [
            {
                "class": manifest.classes[label],
                "category_id": manifest.category_ids[label],
                "score": score,
                "box_xyxy": box,
            }
            for label, score, box in zip(detections.classes.tolist(), scores, boxes, strict=True)
        ],
    }


class DetectionWriter(Protocol):
    """Takes detections as they come, so that memory does not grow with the number of images."""

    def add(self, row: dict[str, Any]) -> None:
        """Write one image or frame."""
        ...

    def skip(self, entry: dict[str, str]) -> None:
        """Note an input that could not be read."""
        ...


class DetectionFiles:
    """Hands every row to all writers, and counts."""

    def __init__(self, writers: Sequence[DetectionWriter]) -> None:
        self._writers = writers
        self.images, self.skipped = 0, list[dict[str, str]]()

    def add(self, row: dict[str, Any]) -> None:
        """Write one image or frame to every file."""
        for writer in self._writers:
            writer.add(row)
        self.images += 1

    def skip(self, path: Path | str, error: UserError) -> None:
        """Warn of an input that could not be read, and note it in every file."""
        tqdm.write(f"warning: skipped {error}", file=sys.stderr)
        self.skipped.append({"file": str(path), "reason": str(error)})
        for writer in self._writers:
            writer.skip(self.skipped[-1])


@contextmanager
def json_file(path: Path, head: dict[str, Any]) -> Iterator[DetectionWriter]:
    """One JSON object: the fields of `head`, "images", "skipped" and "complete".

    The file appears when the block ends. If the block fails or is interrupted, the file is written with "complete":
    false, unless it has no row. Raises WriteError.
    """
    failure: BaseException | None = None
    with atomic_path(path) as temporary, _open_text(temporary) as file:
        writer = _JsonWriter(file, head)
        try:
            yield writer
        except (UserError, OSError, KeyboardInterrupt) as error:
            if not writer.has_rows:
                raise
            failure = error
        writer.end(failure is None)
    if failure is not None:
        raise failure


def _open_text(path: Path) -> TextIO:
    """A new text file; see `as_utf8` for names that UTF-8 can't hold."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


class _JsonWriter:
    def __init__(self, file: TextIO, head: dict[str, Any]) -> None:
        self._file, self.has_rows, self._skipped = file, False, list[dict[str, str]]()
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "images": [')

    def add(self, row: dict[str, Any]) -> None:
        self._file.write((",\n" if self.has_rows else "\n") + json.dumps(row, ensure_ascii=False))
        self.has_rows = True

    def skip(self, entry: dict[str, str]) -> None:
        self._skipped.append(entry)

    def end(self, is_complete: bool) -> None:
        tail = {"skipped": self._skipped, "complete": is_complete}
        self._file.write("\n], " + json.dumps(tail, ensure_ascii=False)[1:] + "\n")


def json_lines_file(path: Path) -> AbstractContextManager[DetectionWriter]:
    """A line of JSON per image or frame, flushed as soon as it is done; so is a line per skipped input.

    An existing file is replaced when the block begins. Raises WriteError.
    """
    return text_file(path, lambda row: json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def text_file(path: Path, as_text: Callable[[dict[str, Any]], str], head: str = "") -> Iterator[DetectionWriter]:
    """A text file that begins with `head` and grows by `as_text` of each row and of each skipped input's entry.

    What is written is flushed at once. An existing file is replaced when the block begins. Raises WriteError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_text(path)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        writer = _TextWriter(file, path, as_text)
        writer.write(head)
        yield writer
    finally:
        with suppress(OSError):  # everything was flushed: what cannot be written has been reported
            file.close()


@contextmanager
def parquet_file(path: Path) -> Iterator[DetectionWriter]:
    """A Parquet file with a row per image, frame and skipped input; its columns are the fields of the JSON rows.

    The file appears when the block ends, also if it fails or is interrupted, unless it has no row then. Raises
    WriteError, UserError without pyarrow.
    """
    arrow, parquet = import_parquet()
    detection = [("class", arrow.string()), ("category_id", arrow.int64()), ("score", arrow.float64())]
    fields = [
        ("file", arrow.string()),
        ("frame", arrow.int64()),
        ("time_s", arrow.float64()),
        ("dropped", arrow.int64()),  # of a stream
        ("reconnects", arrow.int64()),
        ("height", arrow.int32()),
        ("width", arrow.int32()),
        ("detections", arrow.list_(arrow.struct([*detection, ("box_xyxy", arrow.list_(arrow.float64()))]))),
        ("reason", arrow.string()),  # why the input was skipped
    ]
    failure: BaseException | None = None
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        parquet.ParquetWriter(file, arrow.schema(fields)) as target,
    ):
        writer = _ParquetWriter(arrow, target)
        try:
            yield writer
        except (UserError, OSError, KeyboardInterrupt) as error:
            if not writer.has_rows:
                raise
            failure = error
        writer.flush()
    if failure is not None:
        raise failure


class _ParquetWriter:
    def __init__(self, arrow: Any, target: Any) -> None:
        self._arrow, self._target, self._rows = arrow, target, list[dict[str, Any]]()
        self.has_rows = False

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.has_rows = True
        if len(self._rows) == GROUP_ROWS:
            self.flush()

    def skip(self, entry: dict[str, str]) -> None:
        self.add(entry)

    def flush(self) -> None:
        if self._rows:
            rows = [_with_utf8(row) for row in self._rows]
            self._target.write_table(self._arrow.Table.from_pylist(rows, schema=self._target.schema))
        self._rows = []


def _with_utf8(row: dict[str, Any]) -> dict[str, Any]:
    """The row with texts that Parquet can hold."""
    fields: dict[str, Any] = {key: as_utf8(value) if isinstance(value, str) else value for key, value in row.items()}
    if "detections" in fields:
        fields["detections"] = [{**found, "class": as_utf8(found["class"])} for found in fields["detections"]]
    return fields


class _TextWriter:
    def __init__(self, file: TextIO, path: Path, as_text: Callable[[dict[str, Any]], str]) -> None:
        self._file, self._path, self._as_text = file, path, as_text

    def add(self, row: dict[str, Any]) -> None:
        self.write(self._as_text(row))

    def skip(self, entry: dict[str, str]) -> None:
        self.write(self._as_text(entry))

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error
