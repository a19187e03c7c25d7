"""COCO results in arrays: a detection takes 56 bytes, against 800 as an entry of a list. Joining and filtering.

Many results lie in a temporary file, which the arrays map into memory. What goes over all of them takes them by
`in_parts`, so that memory holds one part.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np

from ..detection_filter import DetectionFilter
from ..detections import Detections, select
from .format import CocoError, Problems, shown, some
from .row_store import RowStore, chunks, ranges, release

UNKNOWN_CATEGORY = "result of a category that the annotations lack, left out"
PART = 1 << 15  # results that are in memory at a time
_ROW = np.dtype([("image_id", np.int64), ("category_id", np.int64), ("box", np.float64, 4), ("score", np.float64)])


@dataclass(frozen=True, eq=False)
class Results(Sequence[dict[str, Any]]):
    """The content of a COCO results file; as a sequence, it gives the file's entries, with the data set's numbers."""

    image_ids: np.ndarray  # int64 [n], the data set's own
    category_ids: np.ndarray  # int64 [n], the data set's own
    boxes: np.ndarray  # float64 [n, 4] x, y, width, height
    scores: np.ndarray  # float64 [n]
    areas: np.ndarray | None = None  # float64 [n] px², of results that are masks; None: those of the boxes
    problems: tuple[str, ...] = ()  # what was left out or read otherwise than written, a line per kind

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
        for part in in_parts(self, 4096):  # all entries at once would be the large lists that this class avoids
            for image_id, category_id, box, score in zip(
                part.image_ids.tolist(),
                part.category_ids.tolist(),
                part.boxes.tolist(),
                part.scores.tolist(),
                strict=True,
            ):
                yield {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def results_of_image(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int | None],
    box_growth: tuple[float, float, float, float] | None = None,
) -> Results:
    """Detections of one image (xyxy, image pixels) as COCO results.

    `category_ids` are the data set's, by class (`ClassMatch.category_ids`); detections of a class without one are left
    out. `box_growth` is `Thresholds.box_growth`. Values are rounded (0.001 px, 1e-6 score), so that scoring a written
    file gives the metrics that were printed.
    """
    if None in category_ids:
        known = np.array([category_id is not None for category_id in category_ids])
        detections = select(detections, known[detections.classes])
        category_ids = [0 if category_id is None else category_id for category_id in category_ids]
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


def known_results(
    results: Results, image_ids: np.ndarray, category_ids: np.ndarray | Sequence[int], problems: Problems
) -> Results:
    """The results of known categories; the others are left out and named in `problems`.

    Raises CocoError for a result of an unknown image, and where no result is of a known category.
    """
    counted, first = Counter[int](), 0
    for part in in_parts(results):
        unknown = np.flatnonzero(~np.isin(part.image_ids, image_ids))
        if len(unknown):
            raise CocoError(
                f"result {first + unknown[0] + 1} of {len(results)} has image_id {part.image_ids[unknown[0]]}, which "
                "the annotations lack; give the annotations that the results were made on"
            )
        foreign = part.category_ids[~np.isin(part.category_ids, category_ids)].tolist()
        for category_id in foreign:
            problems.add(UNKNOWN_CATEGORY, f"category {category_id}")
        counted.update(foreign)
        first += len(part)
    if not counted:
        return results
    if counted.total() == len(results):
        raise all_unknown(len(results), counted, category_ids)
    return _kept(results, lambda part: np.isin(part.category_ids, category_ids))


def all_unknown(count: int, given: Iterable[Any], known: Iterable[Any]) -> CocoError:
    """The error for results that are all of categories that the annotations lack; `given` are theirs."""
    ours, theirs = (
        some([*dict.fromkeys(shown(one.item() if isinstance(one, np.generic) else one) for one in ids)])
        for ids in (given, known)
    )
    return CocoError(
        f"all {count} results are of categories that the annotations lack (category_id {ours}; the annotations have "
        f"{theirs}); check that both use the same category ids"
    )


def take(results: Results, rows: np.ndarray | slice) -> Results:
    """The results at `rows` (indices, a mask or a slice)."""
    return Results(
        results.image_ids[rows],
        results.category_ids[rows],
        results.boxes[rows],
        results.scores[rows],
        None if results.areas is None else results.areas[rows],
    )


def in_parts(results: Results, size: int = PART) -> Iterator[Results]:
    """The results in parts of at most `size`, in order. A part may be used until the next one is asked for."""
    for first in range(0, len(results), size):
        yield take(results, slice(first, first + size))
        release(results.scores)


def filter_results(results: Results, kept: DetectionFilter) -> Results:
    """The results that the filter keeps."""
    return _kept(results, lambda part: kept.mask(part.scores, part.category_ids))


def _kept(results: Results, mask: Callable[[Results], np.ndarray]) -> Results:
    """The results where `mask` of their part is true; the same object where all are."""
    if all(mask(part).all() for part in in_parts(results)):
        return results
    if results.areas is not None:  # of a results file, which is in memory
        return take(results, mask(results))
    return join_results(take(part, mask(part)) for part in in_parts(results))


def join_results(parts: Iterable[Results], image_ids: np.ndarray | None = None) -> Results:
    """All parts in one. With `image_ids`, results are sorted by their image's place there; the sort is stable."""
    gathered = ResultsBuilder()
    for part in parts:
        gathered.add(part)
    return gathered.results(image_ids)


def empty_results() -> Results:
    """No results."""
    return ResultsBuilder().results()


class ResultsBuilder:
    """Collects results part by part: a few in memory, many in a temporary file."""

    def __init__(self) -> None:
        self._store = RowStore(_ROW)
        # Runs of results that have an image in common: the image's id, and the number of results.
        self._run_ids, self._run_counts = array("q"), array("q")

    def add(self, part: Results) -> None:
        """Append results. Raises WriteError."""
        if not len(part):
            return
        rows = np.empty(len(part), _ROW)
        rows["image_id"], rows["category_id"] = part.image_ids, part.category_ids
        rows["box"], rows["score"] = part.boxes, part.scores
        self._store.add(rows)
        changes = np.flatnonzero(part.image_ids[1:] != part.image_ids[:-1]) + 1
        for first, last in pairwise((0, *changes.tolist(), len(part))):
            self._run_ids.append(int(part.image_ids[first]))
            self._run_counts.append(last - first)

    def results(self, image_ids: np.ndarray | None = None) -> Results:
        """All results, as `join_results`. The builder cannot be used any more. Raises WriteError."""
        rows = self._store.finish()
        if image_ids is not None:
            run_ids, counts = np.array(self._run_ids), np.array(self._run_counts)
            by_id = np.argsort(image_ids, kind="stable")
            places = by_id[np.searchsorted(image_ids, run_ids, sorter=by_id)]
            if (places[1:] < places[:-1]).any():
                order = np.argsort(places, kind="stable")
                rows = _reordered(rows, (np.cumsum(counts) - counts)[order], counts[order])
        return Results(rows["image_id"], rows["category_id"], rows["box"], rows["score"])


def _reordered(rows: np.ndarray, firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The runs of `counts` rows that begin at `firsts`, one after the other."""
    store = RowStore(_ROW)
    for chosen in chunks(counts, PART):
        store.add(rows[ranges(firsts[chosen], counts[chosen])])
        release(rows)
    return store.finish()
