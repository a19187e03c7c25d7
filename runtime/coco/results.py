"""COCO results in arrays: a detection takes 56 bytes, against 800 as an entry of a list. Reading, writing, joining."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, overload

import numpy as np

from ..detection_filter import DetectionFilter
from ..detections import Detections
from ..files import atomic_path
from .format import CocoError, Problems, is_finite, read_json


@dataclass(frozen=True, eq=False)
class Results(Sequence[dict[str, Any]]):
    """The content of a COCO results file; as a sequence, it gives the file's entries."""

    image_ids: np.ndarray  # int64 [n]
    category_ids: np.ndarray  # int64 [n], the data set's own
    boxes: np.ndarray  # float64 [n, 4] x, y, width, height
    scores: np.ndarray  # float64 [n]

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return list(take(self, index))
        row = range(len(self))[index]
        return next(iter(take(self, slice(row, row + 1))))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        step = 4096  # entries; all at once would be the large lists that this class avoids
        for first in range(0, len(self), step):
            rows = slice(first, first + step)
            for image_id, category_id, box, score in zip(
                self.image_ids[rows].tolist(),
                self.category_ids[rows].tolist(),
                self.boxes[rows].tolist(),
                self.scores[rows].tolist(),
                strict=True,
            ):
                yield {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def results_of_image(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int],
    box_growth: tuple[float, float, float, float] | None = None,
) -> Results:
    """Detections of one image (xyxy, image pixels) as COCO results.

    `category_ids` are the manifest's, by class; `box_growth` is `Thresholds.box_growth`. Values are rounded (0.001 px,
    1e-6 score), so that scoring a written file gives the metrics that were printed.
    """
    boxes = detections.boxes.astype(np.float64) + (box_growth or 0.0)
    boxes[:, 2:] -= boxes[:, :2]
    return Results(
        np.full(len(detections), image_id, np.int64),
        np.array(category_ids, np.int64)[detections.classes],
        np.round(boxes, 3),
        np.round(detections.scores.astype(np.float64), 6),
    )


def results_to_detections(results: Results, category_ids: Sequence[int]) -> Detections:
    """The results of one image, best first, as detections (xyxy); `category_ids` names the category of each class."""
    order = np.argsort(-results.scores, kind="stable")
    boxes = results.boxes[order].astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    by_id = np.argsort(category_ids)
    classes = by_id[np.searchsorted(category_ids, results.category_ids[order], sorter=by_id)]
    return Detections(boxes, results.scores[order].astype(np.float32), classes.astype(np.int32))


def load_results(path: str | os.PathLike[str]) -> Results:
    """The results in a COCO results file. Raises CocoError."""
    return parse_results(read_json(Path(path), "results"), path)


def parse_results(content: Any, source: object) -> Results:
    """The entries of a parsed COCO results file; `source` names the file in messages.

    Raises CocoError unless `content` is a list whose entries have integer ids, four finite numbers as `bbox` and a
    finite `score`. Whether the ids are known to the annotations is checked by `known_results`.
    """
    if not isinstance(content, list):
        raise CocoError(f"{source}: not COCO results; expected a list of {{image_id, category_id, bbox, score}}")
    for number, entry in enumerate(content, start=1):
        if (problem := _problem(entry)) is not None:
            raise CocoError(
                f"{source}: result {number} of {len(content)} {problem}; expected {{image_id, category_id, bbox [x, y, "
                "width, height], score}"
            )
    return Results(
        np.array([entry["image_id"] for entry in content], np.int64),
        np.array([entry["category_id"] for entry in content], np.int64),
        np.array([entry["bbox"] for entry in content], np.float64).reshape(-1, 4),
        np.array([entry["score"] for entry in content], np.float64),
    )


def known_results(
    results: Results, image_ids: np.ndarray, category_ids: np.ndarray | Sequence[int], problems: Problems
) -> Results:
    """The results of known categories; the others are left out and named in `problems`.

    Raises CocoError for a result of an unknown image, and where no result is of a known category.
    """
    unknown = np.flatnonzero(~np.isin(results.image_ids, image_ids))
    if len(unknown):
        raise CocoError(
            f"result {unknown[0] + 1} of {len(results)} has image_id {results.image_ids[unknown[0]]}, which the "
            "annotations lack; give the annotations that the results were made on"
        )
    is_known = np.isin(results.category_ids, category_ids)
    if is_known.all():
        return results
    if not is_known.any():
        raise CocoError(
            f"all {len(results)} results are of categories that the annotations lack; check that both use the same "
            "category ids"
        )
    for category_id in results.category_ids[~is_known].tolist():
        problems.add("result of a category that the annotations lack", f"category {category_id}")
    return take(results, is_known)


def _problem(entry: Any) -> str | None:
    """Why an entry of a results file cannot be used, or None."""
    if not isinstance(entry, dict):
        return "is not an object"
    for name in ("image_id", "category_id"):
        value = entry.get(name)
        if not isinstance(value, int) or abs(value) >= 2**63:
            return f"has no integer {name} ({value!r})"
    box, score = entry.get("bbox"), entry.get("score")
    if not isinstance(box, list) or len(box) != 4:
        return f"has bbox {box!r}"
    if not all(is_finite(value) for value in (*box, score)):
        return f"has bbox {box!r} and score {score!r}, expected finite numbers"
    return None


def take(results: Results, rows: np.ndarray | slice) -> Results:
    """The results at `rows` (indices, a mask or a slice)."""
    return Results(results.image_ids[rows], results.category_ids[rows], results.boxes[rows], results.scores[rows])


def filter_results(results: Results, kept: DetectionFilter) -> Results:
    """The results that the filter keeps."""
    mask = kept.mask(results.scores, results.category_ids)
    return results if mask.all() else take(results, mask)


def join_results(parts: Iterable[Results], image_ids: np.ndarray | None = None) -> Results:
    """All parts in one. With `image_ids`, results are sorted by their image's place there; the sort is stable."""
    gathered = ResultsBuilder()
    for part in parts:
        gathered.add(part)
    return gathered.results(image_ids)


def empty_results() -> Results:
    """No results."""
    return Results(*_nothing())


class ResultsBuilder:
    """Collects results part by part in arrays that grow, so that memory holds each result once."""

    def __init__(self) -> None:
        self._count = 0
        self._columns = _nothing()

    def add(self, part: Results) -> None:
        """Append results."""
        end = self._count + len(part)
        for column, more in zip(self._columns, _columns(part), strict=True):
            if end > len(column):
                # The system moves the pages of a large array instead of copying it. No view of the array exists.
                column.resize((max(end, len(column) + len(column) // 8 + 4096), *column.shape[1:]), refcheck=False)
            column[self._count : end] = more
        self._count = end

    def results(self, image_ids: np.ndarray | None = None) -> Results:
        """All results, as `join_results`; the builder is empty afterwards."""
        for column in self._columns:
            column.resize((self._count, *column.shape[1:]), refcheck=False)
        found = Results(*self._columns)
        self._count, self._columns = 0, _nothing()
        if image_ids is not None:
            by_id = np.argsort(image_ids, kind="stable")
            places = by_id[np.searchsorted(image_ids, found.image_ids, sorter=by_id)]
            if (places[1:] < places[:-1]).any():
                order = np.argsort(places, kind="stable")
                del places
                for column in (found.image_ids, found.category_ids, found.scores, *found.boxes.T):
                    column[:] = column[order]
        return found


def _nothing() -> tuple[np.ndarray, ...]:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0)


def _columns(results: Results) -> tuple[np.ndarray, ...]:
    return results.image_ids, results.category_ids, results.boxes, results.scores


def write_results(path: str | os.PathLike[str], results: Sequence[dict[str, Any]]) -> None:
    """Write a COCO results file atomically. Raises WriteError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_rows(file, results)


def write_rows(file: TextIO, results: Sequence[dict[str, Any]]) -> None:
    """Write a JSON list, one entry at a time."""
    file.write("[")
    for number, row in enumerate(results):
        file.write((", " if number else "") + json.dumps(row))
    file.write("]")
