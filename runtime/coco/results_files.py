"""COCO results in JSON files: reading what tools write, and writing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..files import atomic_path
from .dataset import CocoDataset
from .format import CocoError, mask_area, mask_box, read_json, shown
from .format.ids import MOST
from .format.values import LARGEST, number_of
from .result_ids import EXPECTED, IDS, has_plain_ids, with_ids
from .results import Results

WRAPPERS = ("results", "predictions", "detections")  # keys under which an object may have the list of results
_NUMBERS = {int, float}


def load_results(path: str | os.PathLike[str], dataset: CocoDataset | None = None) -> Results:
    """The results in a COCO results file, or in JSON Lines with a result in each. Raises as `parse_results`."""
    return parse_results(read_results(Path(path)), path, dataset)


def read_results(path: Path) -> Any:
    """The parsed JSON of a results file; of JSON Lines, the list of what the lines have. Raises CocoError."""
    try:
        return read_json(path, "results")
    except CocoError:
        if not path.is_file() or (lines := _json_lines(path)) is None:
            raise
        return lines


def _json_lines(path: Path) -> list[Any] | None:
    """The objects of JSON Lines; None where the first line is no object or the only one. Raises CocoError."""
    data = path.read_bytes()
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
    except UnicodeDecodeError:
        return None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    found: list[Any] = []
    for number, line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if not found:
                return None
            raise CocoError(f"{path}: line {number} is not valid JSON ({error}); the file may be cut short") from error
    return found if len(found) > 1 and isinstance(found[0], dict) else None


def parse_results(content: Any, source: object, dataset: CocoDataset | None = None) -> Results:
    """The entries of a parsed COCO results file; `source` names the file in messages.

    `content` is a list of results, an object with such a list under a key of WRAPPERS, or one result. A result has ids,
    a finite score, and four finite numbers as `bbox` or else a mask as run-length code, whose box it gets. Numbers may
    be texts. With a `dataset` the results' ids are found as `find_ids` does, and are its numbers; without one they have
    to be whole numbers, and whether annotations have them is checked by `known_results`. Raises CocoError.
    """
    entries = _entries(content, source)
    if all(map(_is_clean, entries)):
        image_ids = np.array([entry["image_id"] for entry in entries], np.int64)
        if dataset is None or has_plain_ids(dataset, image_ids):
            return Results(
                image_ids,
                np.array([entry["category_id"] for entry in entries], np.int64),
                np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
                np.array([entry["score"] for entry in entries], np.float64),
            )
    boxes, areas, scores = np.empty((len(entries), 4)), np.empty(len(entries)), np.empty(len(entries))
    for place, entry in enumerate(entries):
        try:
            boxes[place], areas[place] = _box_and_area(entry)
            scores[place] = _score(entry)
        except ValueError as error:
            raise CocoError(f"{source}: result {place + 1} of {len(entries)} {error}; {EXPECTED}") from error
    images, categories, names = ([entry.get(name) for entry in entries] for name in (*IDS, "file_name"))
    none = np.zeros(len(entries), np.int64)
    return with_ids(images, categories, names, Results(none, none, boxes, scores, areas), dataset, source)


def _entries(content: Any, source: object) -> list[Any]:
    if isinstance(content, list):
        return content
    hint = ""
    if isinstance(content, dict):
        if len(lists := [key for key in WRAPPERS if isinstance(content.get(key), list)]) == 1:
            wrapped: list[Any] = content[lists[0]]
            return wrapped
        if {*IDS, "score"} <= content.keys():
            return [content]
        if others := [key for key, value in content.items() if isinstance(value, list) and any(map(_has_score, value))]:
            hint = f"; if the list under {shown(others[0])} has the results, write that list alone"
    raise CocoError(f"{source}: not COCO results; expected a list of {{image_id, category_id, bbox, score}}{hint}")


def _has_score(entry: Any) -> bool:
    return isinstance(entry, dict) and "score" in entry


def _is_clean(entry: Any) -> bool:
    """Whether an entry is a result as COCO writes it."""
    if type(entry) is not dict:
        return False
    image_id, category_id, box, score = map(entry.get, (*IDS, "bbox", "score"))
    return (
        type(image_id) is int
        and type(category_id) is int
        and -MOST < image_id < MOST
        and -MOST < category_id < MOST
        and type(box) is list
        and len(box) == 4
        and {*map(type, box), type(score)} <= _NUMBERS
        and -LARGEST <= box[0] <= LARGEST
        and -LARGEST <= box[1] <= LARGEST
        and -LARGEST <= box[2] <= LARGEST
        and -LARGEST <= box[3] <= LARGEST
        and -LARGEST <= score <= LARGEST  # type: ignore[operator]
    )


def _box_and_area(entry: Any) -> tuple[tuple[float, ...], float]:
    """The box of a result, and the area of its mask or box. Raises ValueError, which says what the result lacks."""
    if not isinstance(entry, dict):
        raise ValueError("is not an object")
    box = entry.get("bbox")
    if not box and (mask := entry.get("segmentation")):
        try:
            box = mask_box(mask)
            return box, mask_area(mask) if isinstance(mask, dict) else box[2] * box[3]
        except ValueError as error:
            raise ValueError(f"has no bbox, and its mask cannot be read: {error}") from error
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise ValueError(f"has bbox {shown(box)}")
    numbers = tuple(number_of(value) for value in box)
    if None in numbers:
        raise ValueError(f"has bbox {shown(box)}, expected finite numbers")
    return numbers, numbers[2] * numbers[3]  # type: ignore[return-value,operator]


def _score(entry: dict[str, Any]) -> float:
    if (score := number_of(entry.get("score"))) is None:
        raise ValueError(f"has score {shown(entry.get('score'))}, expected a finite number")
    return score


def write_results(path: str | os.PathLike[str], results: Results, dataset: CocoDataset | None = None) -> None:
    """Write a COCO results file atomically, with ids as the data set's file has them. Raises WriteError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_rows(file, results if dataset is None else as_written(results, dataset))


def write_rows(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list, one entry at a time."""
    file.write("[")
    for number, row in enumerate(rows):
        file.write((", " if number else "") + json.dumps(row))
    file.write("]")


def as_written(results: Results, dataset: CocoDataset) -> Iterator[dict[str, Any]]:
    """The entries of results, with the ids that the data set's file has."""
    images, categories = written_ids(dataset)
    for row in results:
        if images is not None:
            row["image_id"] = images[row["image_id"]]
        if categories is not None:
            row["category_id"] = categories[row["category_id"]]
        yield row


def written_ids(dataset: CocoDataset) -> tuple[dict[int, Any] | None, dict[int, Any] | None]:
    """The ids of images and of categories as written, by the data set's numbers; None where they are these numbers."""
    images, categories = dataset.written_image_ids, dataset.written_category_ids
    return (
        None if images is None else dict(zip(dataset.image_ids.tolist(), images, strict=True)),
        None if categories is None else dict(zip(dataset.category_ids, categories, strict=True)),
    )
