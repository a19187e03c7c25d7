"""Detections over a data set in COCO's terms, in arrays: a detection takes 56 bytes, as an entry of a list 800."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO, overload

import numpy as np

from .detections import Detections
from .files import atomic_path


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


def of_image(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int],
    box_growth: tuple[float, float, float, float] | None = None,
) -> Results:
    """Detections of one image (xyxy, image pixels) in COCO's terms.

    `box_growth` (`Thresholds.box_growth`) is added to boxes for the area that they cover.
    Rounded (0.001 pixel, 1e-6 score), so that scoring the written file gives the figures that were printed.
    """
    boxes = detections.boxes.astype(np.float64) + (box_growth or 0.0)
    boxes[:, 2:] -= boxes[:, :2]
    return Results(
        np.full(len(detections), image_id, np.int64),
        np.array(category_ids, np.int64)[detections.classes],
        np.round(boxes, 3),
        np.round(detections.scores.astype(np.float64), 6),
    )


def of_rows(rows: Sequence[dict[str, Any]]) -> Results:
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


def join(parts: Iterable[Results]) -> Results:
    """All parts, one after the other. Of many, no more than some hundreds are held beside the whole."""
    chunks, iterator = [of_rows([])], iter(parts)
    while chunk := list(islice(iterator, 256)):
        chunks.append(_join(chunk))
    return _join(chunks)


def _join(parts: Sequence[Results]) -> Results:
    return Results(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def in_order_of(results: Results, image_ids: np.ndarray) -> Results:
    """Sorted by the place of each one's image in `image_ids`, those of an image as they were."""
    by_id = np.argsort(image_ids, kind="stable")
    places = by_id[np.searchsorted(image_ids, results.image_ids, sorter=by_id)]
    return take(results, np.argsort(places, kind="stable"))


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
