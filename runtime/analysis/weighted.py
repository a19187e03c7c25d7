"""COCO's precision and recall of one category where each image counts a whole number of times.

An image of weight w counts as w copies of it would. The detections are matched and sorted once; each resample only adds
up weights. With weights of 1 every number equals that of `runtime.coco.scoring` bit for bit.

Of detections of one image and category that have the same score, all copies of the earlier one stand before all copies
of the later one.

B resamples, I images, N detections of the category, M matched ones; 4 areas, T = 10 IoU thresholds, R = 101 recalls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coco.matching import AREAS, IOUS, MATCH, MOST, bit
from ..coco.scoring import RECALLS, Matches

_EPSILON = np.spacing(1)  # as pycocotools adds it


@dataclass(frozen=True)
class CategoryMatches:
    """The matches of one category by descending score; of equal scores, by image and rank."""

    rows: np.ndarray  # MATCH [M], those that are matched at any threshold
    misses: tuple[np.ndarray, ...]  # by area: images [n] of the unmatched detections before the last matched one
    before: tuple[np.ndarray, ...]  # by area: how many of `misses` stand before each of the matched ones, [M]
    object_images: np.ndarray  # int64 [G], of the objects that count
    object_sizes: np.ndarray  # float64 [G, 4], 1 for the areas that an object falls into

    @property
    def size(self) -> int:
        """Numbers that a resample needs at a time."""
        return max(1, len(self.rows), len(self.object_images), *(len(images) for images in self.misses))


def sort_matches(
    matches: Matches, category: int, object_images: np.ndarray, object_sizes: np.ndarray
) -> CategoryMatches:
    """Read a category's matches and sort them. Memory holds those of this category."""
    rows = np.concatenate([np.empty(0, MATCH), *matches.of_category(category)])
    rows = rows[np.argsort(-rows["score"], kind="stable")]
    places = np.flatnonzero(rows["matched"])
    unmatched = np.flatnonzero(rows["matched"][: places[-1] if len(places) else 0] == 0)
    misses, before = [], []
    for area in range(len(AREAS)):
        # An unmatched detection of another size is ignored, at all thresholds alike.
        these = unmatched[rows["ignored"][unmatched] & bit(area, 0) == 0]
        misses.append(rows["image"][these])
        before.append(np.searchsorted(these, places))
    return CategoryMatches(rows[places], tuple(misses), tuple(before), object_images, object_sizes.astype(np.float64))


def weighted_precision_recall(found: CategoryMatches, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision [B, T, R, 4] and recall [B, T, 4, 3 of MOST] under `weights` (uint8 [B, I], by row of the images).

    −1 where no object has weight, as in `runtime.coco.scoring.PrecisionRecall`; of fewer than 100 detections, the
    recall is over all areas only.
    """
    count = len(weights)
    to_find = weights[:, found.object_images] @ found.object_sizes  # [B, 4]
    precision = np.full((count, len(IOUS), len(RECALLS), len(AREAS)), -1.0)
    recall = np.full((count, len(IOUS), len(AREAS), len(MOST)), -1.0)
    rows = found.rows
    hits, missed = rows["matched"] & ~rows["ignored"], ~rows["matched"] & ~rows["ignored"]
    of_rows = weights[:, rows["image"]]  # [B, M]
    for area in range(len(AREAS)):
        wanted = to_find[:, area] > 0
        if not wanted.any():
            continue
        needed = _hits_needed(to_find[:, area])
        unmatched = _sums(weights[:, found.misses[area]])[:, found.before[area]]  # [B, M]
        for threshold in range(len(IOUS)):
            this = bit(area, threshold)
            is_hit = hits & this > 0
            curve, reached = _curves(of_rows, is_hit, is_hit | (missed & this > 0), unmatched, needed)
            precision[:, threshold, :, area] = np.where(wanted[:, None], curve, -1.0)
            recall[wanted, threshold, area, -1] = reached[wanted] / to_find[wanted, area]
    wanted = to_find[:, 0] > 0
    first = np.stack([hits & bit(0, threshold) > 0 for threshold in range(len(IOUS))], axis=1)  # [M, T]
    for place, most in enumerate(MOST[:-1]):
        best = rows["rank"] < most
        sums = of_rows[:, best].astype(np.float64) @ first[best].astype(np.float64)
        recall[wanted, :, 0, place] = sums[wanted] / to_find[wanted, :1]
    return precision, recall


def _curves(
    weights: np.ndarray, is_hit: np.ndarray, counts: np.ndarray, unmatched: np.ndarray, needed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [B, R] at each recall, and the number of hits [B].

    `weights` [B, M] are those of the matched detections, of which `is_hit` [M] are hits and `counts` [M] are hits or
    misses; `unmatched` [B, M] is the weight of the other misses before each; `needed` as `_hits_needed` gives it.

    A hit of weight w raises the precision at each of its w steps, so that the highest precision from there on is that
    of the last of them or of a later hit: the steps between are not needed.
    """
    at = np.flatnonzero(is_hit)
    curve = np.zeros(needed.shape)
    if not len(at):
        return curve, np.zeros(len(weights), np.int64)
    of_hits = weights[:, at]
    hits = np.cumsum(of_hits, axis=1, dtype=np.int64)  # [B, hits]
    chosen = np.flatnonzero(counts)
    detections = np.cumsum(weights[:, chosen], axis=1, dtype=np.int64)[:, np.searchsorted(chosen, at)]
    detections += unmatched[:, at]
    precisions = hits / (detections + _EPSILON)
    np.maximum.accumulate(precisions[:, ::-1], axis=1, out=precisions[:, ::-1])
    reached = hits[:, -1]
    # Where each unit of weight stands among the hits: the place of the n-th hit without a search.
    units = np.repeat(np.arange(of_hits.size), of_hits.ravel())
    within = needed <= reached[:, None]
    places = (np.cumsum(reached) - reached)[:, None] + needed - 1
    curve[within] = precisions.ravel()[units[places[within]]]
    return curve, reached


def _hits_needed(to_find: np.ndarray) -> np.ndarray:
    """The fewest hits, at least one, that reach each recall, int64 [B, R], of `to_find` [B] objects.

    A recall is reached as `runtime.coco.scoring` compares it: where hits / to_find, rounded, is no less.
    """
    objects = np.maximum(to_find, 1.0)[:, None]
    hits = np.ceil(RECALLS * objects)
    hits -= (hits - 1) / objects >= RECALLS
    hits += hits / objects < RECALLS
    return np.maximum(hits, 1).astype(np.int64)


def _sums(weights: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1 … n weights, int64 [B, n + 1]."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), np.int64)
    np.cumsum(weights, axis=1, dtype=np.int64, out=sums[:, 1:])
    return sums
