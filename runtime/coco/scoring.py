"""COCO's definition of AP and AR for boxes, on arrays: equals pycocotools' COCOeval bit for bit.

COCOeval itself keeps every annotation, detection and match as Python objects: its memory grows with the data set, and
500 images take it longer than a GPU takes to detect on them. faster-coco-eval gives the same numbers, but takes longer
from 500 images on and nine times the memory or more (benchmarks/coco_benchmark.py).

Only matched detections are held in memory and sorted by score. The others, of which there may be many, are only counted
between them: precision is read where a detection is a hit, and it depends on the number of misses before.

I images, K categories; 4 areas (all, small, medium, large), T = 10 IoU thresholds; a category has N matched detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .ground_truth import GroundTruth
from .matching import AREAS, IOUS, MATCH, MOST, bit, inside, match
from .results import PART, Results
from .row_store import RowStore, chunks, ranges, release

# In the order of pycocotools' `stats`.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

RECALLS = np.linspace(0.0, 1.0, 101)
_COLUMNS = ((0, 1), (0, 10), *((area, MOST[-1]) for area in range(len(AREAS))))  # areas, and numbers of detections


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall; −1 where there is no object to measure on."""

    precision: np.ndarray  # [T, 101 recalls, K, 4] with the 100 best detections
    recall: np.ndarray  # [T, K, 4, 3 of MOST]; with fewer than 100 detections only over all areas


def precision_recall(
    truth: GroundTruth, results: Results, image_ids: Sequence[int] | np.ndarray | None = None
) -> PrecisionRecall:
    """Precision and recall of results of known images and categories, on all images or those of `image_ids`.

    Raises WriteError where matches need a temporary file that cannot be written.
    """
    wanted = np.isin(truth.image_ids, truth.image_ids if image_ids is None else np.asarray(image_ids, np.int64))
    to_find = np.zeros((len(truth.category_ids), len(AREAS)), np.int64)
    counted = wanted[truth.images] & ~truth.crowd
    np.add.at(to_find, truth.categories[counted], inside(truth.areas[counted]))
    precision = np.full((len(IOUS), len(RECALLS), len(truth.category_ids), len(AREAS)), -1.0)
    recall = np.full((len(IOUS), len(truth.category_ids), len(AREAS), len(MOST)), -1.0)
    measured = np.count_nonzero(to_find, axis=1) > 0
    matches = Matches(truth, results, wanted, measured)
    for category in np.flatnonzero(measured).tolist():  # one at a time, so that memory holds one
        _accumulate(matches, category, to_find[category], precision[:, :, category], recall[:, category])
    return PrecisionRecall(precision, recall)


def metric_values(scores: PrecisionRecall) -> dict[str, float]:
    """COCO's twelve metrics, by METRIC_NAMES."""
    precision, recall = scores.precision, scores.recall
    values = (
        precision[..., 0],
        precision[:1, ..., 0],  # IoU 0.5
        precision[5:6, ..., 0],  # IoU 0.75
        *(precision[..., area] for area in (1, 2, 3)),
        *(recall[:, :, 0, most] for most in range(len(MOST))),
        *(recall[:, :, area, -1] for area in (1, 2, 3)),
    )
    return dict(zip(METRIC_NAMES, map(mean_of_measured, values), strict=True))


def mean_of_measured(values: np.ndarray) -> float:
    """Mean of the values that are not −1; −1 if there is none."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else -1.0


class Matches:
    """All matches, read category by category in the order of images and ranks.

    `images` and `categories` are masks as `match` takes them. Raises WriteError as `precision_recall` does.
    """

    def __init__(self, truth: GroundTruth, results: Results, images: np.ndarray, categories: np.ndarray) -> None:
        store = RowStore(MATCH)
        # Of each category: where its matches of some images begin, and how many there are.
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in categories]
        for labels, rows in match(truth, results, images, categories):
            starts = np.flatnonzero(np.diff(labels, prepend=-1))
            counts = np.diff(starts, append=len(labels))
            for label, start, count in zip(labels[starts].tolist(), starts.tolist(), counts.tolist(), strict=True):
                self._pieces[label].append((len(store) + start, count))
            store.add(rows)
        self._rows = store.finish()

    def count(self, category: int) -> int:
        """How many matches a category has; reads none."""
        return sum(count for _, count in self._pieces[category])

    def of_category(self, category: int) -> Iterator[np.ndarray]:
        """The MATCH rows of a category, in parts."""
        pieces = np.array(self._pieces[category], np.int64).reshape(-1, 2)
        for chosen in chunks(pieces[:, 1], PART):
            yield self._rows[ranges(*pieces[chosen].T)]
            release(self._rows)


def _accumulate(
    matches: Matches, category: int, to_find: np.ndarray, precision: np.ndarray, recall: np.ndarray
) -> None:
    """Write a category's precision [T, 101, 4] at each recall, and the recall [T, 4, 3] that it reaches.

    `to_find` [4] counts the objects of each area; an area without objects keeps its −1.
    """
    rows, places = _matched(matches, category)
    misses = _misses_between(matches, category, rows["score"], places)
    hits, missed = rows["matched"] & ~rows["ignored"], ~rows["matched"] & ~rows["ignored"]
    for (area, most), before in zip(_COLUMNS, np.cumsum(misses, axis=1), strict=True):
        if not to_find[area]:
            continue
        counts = rows["rank"] < most
        for threshold in range(len(IOUS)):
            this = bit(area, threshold)
            is_hit = counts & (hits & this > 0)
            misses_at = before[:-1] + np.cumsum(counts & (missed & this > 0))
            curve, reached = precision_at_recalls(misses_at[is_hit], int(to_find[area]))
            recall[threshold, area, MOST.index(most)] = reached
            if most == MOST[-1]:
                precision[threshold, :, area] = curve


def _matched(matches: Matches, category: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows [N] of a category that are matched in any of the matchings, by descending score, and their places."""
    rows, places, before = [np.empty(0, MATCH)], [np.empty(0, np.int64)], 0
    for part in matches.of_category(category):
        chosen = np.flatnonzero(part["matched"])
        rows.append(part[chosen])
        places.append(before + chosen)
        before += len(part)
    joined = np.concatenate(rows)
    order = np.argsort(-joined["score"], kind="stable")
    return joined[order], np.concatenate(places)[order]


def _misses_between(matches: Matches, category: int, scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How many unmatched detections stand before each of the matched ones and behind the last, int64 [6, N + 1].

    Detections stand by descending score; of equal scores, by their place in the category. `scores` [N] and `places` [N]
    are those of the matched detections. A row for each of `_COLUMNS`.
    """
    counts = np.zeros((len(_COLUMNS), len(scores) + 1), np.int64)
    levels, level = np.unique(-scores, return_inverse=True)
    step = 1 + matches.count(category)
    keys = level * step + places + 1  # rising
    first = 0
    for part in matches.of_category(category):
        chosen = np.flatnonzero(part["matched"] == 0)
        unmatched, place = part[chosen], first + chosen
        level = np.searchsorted(levels, -unmatched["score"])
        tied = np.append(levels, np.inf)[level] == -unmatched["score"]
        position = np.searchsorted(keys, level * step + np.where(tied, place + 1, 0))
        for number, (area, most) in enumerate(_COLUMNS):
            # Unmatched detections are alike at all thresholds.
            is_miss = (unmatched["rank"] < most) & (unmatched["ignored"] & bit(area, 0) == 0)
            counts[number] += np.bincount(position[is_miss], minlength=len(counts[number]))
        first += len(part)
    return counts


def precision_at_recalls(misses: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Precision at each of the 101 recalls, and the last recall, from the number of misses before each hit.

    Between two hits the recall stays and the precision falls, so that neither is needed there.
    """
    curve = np.zeros(len(RECALLS))
    if not len(misses):
        return curve, 0.0
    hits = np.arange(1.0, len(misses) + 1)
    precisions = hits / (misses + hits + np.spacing(1))
    np.maximum.accumulate(precisions[::-1], out=precisions[::-1])
    hits /= count  # now the recalls
    at = np.searchsorted(hits, RECALLS, side="left")
    curve[at < len(hits)] = precisions[at[at < len(hits)]]
    return curve, float(hits[-1])
