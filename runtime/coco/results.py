"""Detections over a data set in COCO's terms, in arrays: a detection takes 56 bytes, as an entry of a list 800."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, overload

import numpy as np

from ..detections import Detections
from ..files import atomic_path


@dataclass(frozen=True, eq=False)
class Results(Sequence[dict[str, Any]]):
    """What a COCO results file holds; as a sequence, its entries."""

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
        step = 4096  # all at once would be the lists that this class is there to avoid
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
    """Detections of one image (xyxy, image pixels) in COCO's terms.

    `box_growth` (`Thresholds.box_growth`) is added to boxes for the area that they cover.
    Rounded (0.001 pixel, 1e-6 score), so that scoring the written file gives the metrics that were printed.
    """
    boxes = detections.boxes.astype(np.float64) + (box_growth or 0.0)
    boxes[:, 2:] -= boxes[:, :2]
    return Results(
        np.full(len(detections), image_id, np.int64),
        np.array(category_ids, np.int64)[detections.classes],
        np.round(boxes, 3),
        np.round(detections.scores.astype(np.float64), 6),
    )


def results_of_rows(rows: Sequence[dict[str, Any]]) -> Results:
    """Entries of a results file, which must be well-formed (`coco_eval.checked_results`)."""
    return Results(
        np.array([row["image_id"] for row in rows], np.int64),
        np.array([row["category_id"] for row in rows], np.int64),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array([row["score"] for row in rows], np.float64),
    )


def take(results: Results, rows: np.ndarray | slice) -> Results:
    """Those that `rows` (indices, a mask or a slice) names."""
    return Results(results.image_ids[rows], results.category_ids[rows], results.boxes[rows], results.scores[rows])


def join(parts: Iterable[Results], image_ids: np.ndarray | None = None) -> Results:
    """All parts, one after the other; with `image_ids` sorted by each image's place there, those of an image as they
    were."""
    gathered = ResultsBuilder()
    for part in parts:
        gathered.add(part)
    return gathered.results(image_ids)


class ResultsBuilder:
    """Results that come part by part, held once: in arrays that grow, not in the parts."""

    def __init__(self) -> None:
        self._count = 0
        self._columns = _nothing()

    def add(self, part: Results) -> None:
        end = self._count + len(part)
        for column, more in zip(self._columns, _columns(part), strict=True):
            if end > len(column):
                # The system moves the pages of a large array instead of copying it. No view of it was given away.
                column.resize((max(end, len(column) + len(column) // 8 + 4096), *column.shape[1:]), refcheck=False)
            column[self._count : end] = more
        self._count = end

    def results(self, image_ids: np.ndarray | None = None) -> Results:
        """All of them, as `join`; what was gathered is given away."""
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
    """A COCO results file, all or nothing. Raises WriteError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        write_rows(file, results)


def write_rows(file: TextIO, results: Sequence[dict[str, Any]]) -> None:
    """A JSON list, an entry at a time."""
    file.write("[")
    for number, row in enumerate(results):
        file.write((", " if number else "") + json.dumps(row))
    file.write("]")
