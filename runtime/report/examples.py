"""The images of a report: objects, the detections of every model with their kinds, and how bad each image is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from ..analysis.changes import Changes
from ..analysis.errors import ERROR_KINDS, KINDS, NOT_COUNTED, Errors
from ..coco import CocoDataset, GroundTruth, Results
from .content import CHANGE_KINDS, ChangeKind, DetectedBox, ImageContent, Kind, TruthBox

MOST_IMAGES = 300  # of the worst, and of the most changed: the page's budget chooses among them
_WRONG = [KINDS.index(kind) for kind in KINDS if kind in ERROR_KINDS]


def example_images(
    dataset: CocoDataset,
    truth: GroundTruth,
    image_ids: Sequence[int],
    results: Sequence[Results],
    errors: Sequence[Errors],
    changes: Sequence[Changes],
    min_score: float,
    has_files: bool,
) -> tuple[ImageContent, ...]:
    """The worst images, and those on which the models differ most.

    `results` and `errors` are by model, `changes` by model from the second on. An image is as bad as its errors: each
    wrong detection counts by its score, each object without a detection counts 1, of all models together. Only
    detections of `min_score` or more are shown and counted.
    """
    places = np.searchsorted(truth.image_ids, np.unique(np.asarray(image_ids, np.int64)))
    badness = sum(
        (_badness(truth, found, kinds, min_score) for found, kinds in zip(results, errors, strict=True)),
        np.zeros(len(truth.image_ids)),
    )
    changed = np.zeros(len(truth.image_ids))
    for one in changes:
        changed[np.searchsorted(truth.image_ids, one.image_ids)] += one.amounts
    worst = places[np.argsort(-badness[places], kind="stable")][:MOST_IMAGES]
    most_changed = places[np.argsort(-changed[places], kind="stable")][:MOST_IMAGES] if changes else places[:0]
    shown = np.unique(np.concatenate([worst, most_changed]))
    boxes = [_Shown(truth, found, kinds, min_score) for found, kinds in zip(results, errors, strict=True)]
    codes = _change_codes(results, changes)
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids.tolist())}
    made = []
    for place in shown.tolist():
        image_id = int(truth.image_ids[place])
        index = index_of[image_id]
        height, width = dataset.size_hw(index)
        made.append(
            ImageContent(
                name=dataset.file_names[index],
                path=dataset.path(index) if has_files else None,
                size_hw=(max(1, height), max(1, width)),
                truth=_truth_boxes(truth, place, results, errors),
                detections=tuple(
                    tuple(_detected(found, own, codes[model], row) for row in own.rows_of(image_id))
                    for model, (found, own) in enumerate(zip(results, boxes, strict=True))
                ),
                badness=float(badness[place]),
                changed=float(changed[place]),
            )
        )
    return tuple(made)


def _badness(truth: GroundTruth, found: Results, errors: Errors, min_score: float) -> np.ndarray:
    """How bad each image is, float64 [I]."""
    rows = np.flatnonzero(np.isin(errors.kinds, _WRONG) & (found.scores >= min_score))
    images = np.searchsorted(truth.image_ids, found.image_ids[rows])
    wrong = np.bincount(images, found.scores[rows].clip(0, 1), len(truth.image_ids))
    missed = ~truth.crowd & (_found_scores(found, errors) < min_score)
    return wrong + np.bincount(truth.images[missed], minlength=len(truth.image_ids))


def _found_scores(found: Results, errors: Errors) -> np.ndarray:
    """The score of the detection that found each object, float64 [A]; −inf for none."""
    scores = np.full(len(errors.found_by), -np.inf)
    has = errors.found_by >= 0
    scores[has] = found.scores[errors.found_by[has]]
    return scores


class _Shown:
    """The rows of one model's detections that are shown, by image, best first."""

    def __init__(self, truth: GroundTruth, found: Results, errors: Errors, min_score: float) -> None:
        rows = np.flatnonzero((errors.kinds != NOT_COUNTED) & (found.scores >= min_score))
        order = np.lexsort((-found.scores[rows], found.image_ids[rows]))
        self._rows = rows[order]
        self._image_ids = found.image_ids[self._rows]
        self.labels = np.searchsorted(truth.category_ids, found.category_ids)
        self.kinds = errors.kinds

    def rows_of(self, image_id: int) -> list[int]:
        """The rows of the results of an image."""
        first, last = np.searchsorted(self._image_ids, [image_id, image_id + 1])
        found: list[int] = self._rows[first:last].tolist()
        return found


def _change_codes(results: Sequence[Results], changes: Sequence[Changes]) -> list[list[np.ndarray]]:
    """By model, what became of each result: places in CHANGE_KINDS, −1 for unchanged; of the first by other model."""
    first: list[np.ndarray] = []
    others: list[list[np.ndarray]] = []
    for found, one in zip(results[1:], changes, strict=True):
        before, after = np.full(len(results[0]), -1, np.int8), np.full(len(found), -1, np.int8)
        for kind, chosen in (("rescored", one.rescored), ("moved", one.moved)):
            before[one.before[chosen]] = after[one.after[chosen]] = CHANGE_KINDS.index(cast(ChangeKind, kind))
        before[one.lost] = CHANGE_KINDS.index("lost")
        after[one.gained] = CHANGE_KINDS.index("gained")
        first.append(before)
        others.append([after])
    return [first, *others]


def _detected(found: Results, own: _Shown, codes: Sequence[np.ndarray], row: int) -> DetectedBox:
    return DetectedBox(
        _xyxy(found.boxes[row]),
        int(own.labels[row]),
        float(found.scores[row]),
        cast(Kind, KINDS[own.kinds[row]]),
        tuple(CHANGE_KINDS[code[row]] if code[row] >= 0 else None for code in codes),
    )


def _truth_boxes(
    truth: GroundTruth, place: int, results: Sequence[Results], errors: Sequence[Errors]
) -> tuple[TruthBox, ...]:
    first, last = np.searchsorted(truth.images, [place, place + 1]).tolist()
    return tuple(
        TruthBox(
            _xyxy(truth.boxes[row]),
            int(truth.categories[row]),
            bool(truth.crowd[row]),
            tuple(
                float(found.scores[own.found_by[row]]) if own.found_by[row] >= 0 else 0.0
                for found, own in zip(results, errors, strict=True)
            ),
        )
        for row in range(first, last)
    )


def _xyxy(box: np.ndarray) -> tuple[float, float, float, float]:
    x, y, width, height = box.tolist()
    return x, y, x + width, y + height
