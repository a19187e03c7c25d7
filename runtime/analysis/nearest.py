"""What each detection lies on, and which objects the detections hit at an IoU threshold.

N detections as `ranking.Ranked` has them, M annotations, of which regions (crowds, regions to ignore) do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.matching import IOUS
from .pairs import first_of_each, match_greedily, overlapping
from .ranking import Ranked
from .selection import in_range

FOREGROUND = 0.1  # TIDE's t_b: a detection with a smaller IoU lies on the background


@dataclass(frozen=True)
class Pairs:
    """Pairs of a detection and an annotation of its class with an IoU of 0.5 or more.

    Sorted as COCO's evaluation tries them: the detections by descending score, and of each the best IoU first; of equal
    ones, the last annotation.
    """

    rows: np.ndarray  # int64, of the detections
    objects: np.ndarray  # int64, of the annotations
    iou: np.ndarray  # float64

    def take(self, chosen: np.ndarray) -> Pairs:
        """Only the pairs of a mask."""
        return Pairs(self.rows[chosen], self.objects[chosen], self.iou[chosen])


@dataclass(frozen=True)
class Nearest:
    """Of each detection, the object of its own class and that of another class with the highest IoU."""

    own: np.ndarray  # int64 [N] row of the annotations, −1: none with an IoU of FOREGROUND or more
    own_iou: np.ndarray  # float64 [N], 0: none
    other: np.ndarray  # int64 [N], the same of other classes
    other_iou: np.ndarray  # float64 [N]
    candidates: Pairs  # with objects that count
    regions: Pairs  # with what does not


@dataclass(frozen=True)
class Found:
    """What the detections hit at one IoU threshold."""

    hit: np.ndarray  # int64 [N] the row of the annotation that each hits, −1: none
    hit_iou: np.ndarray  # float64 [N], 0: none
    ignored: np.ndarray  # bool [N]: lies in a region, or has an area that COCO's evaluation ignores
    mends: np.ndarray  # bool [N]: would hit an object that no detection hits, with another class or another box
    missed: np.ndarray  # bool [M]: counts, is not hit, and nothing would hit it


def find_nearest(found: Ranked, objects: GroundTruth, region: np.ndarray) -> Nearest:
    """Compare the detections with the annotations of their images; `region` (bool [M]) marks what does not count."""
    rows, gts, iou = overlapping(found.boxes, found.images, objects.boxes, objects.images, FOREGROUND, objects.crowd)
    same = found.labels[rows] == objects.categories[gts]
    near = same & (iou >= IOUS[0])
    order = np.flatnonzero(near)[np.lexsort((-gts[near], -iou[near], rows[near]))]
    pairs, apart = Pairs(rows[order], gts[order], iou[order]), region[gts[order]]
    own, other = (
        _highest(rows[chosen], gts[chosen], iou[chosen], len(found.rows))
        for chosen in (same & ~region[gts], ~same & ~region[gts])
    )
    return Nearest(*own, *other, pairs.take(~apart), pairs.take(apart))


def _highest(rows: np.ndarray, gts: np.ndarray, iou: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The object with the highest IoU of each row, the first of equals, and that IoU."""
    order = np.lexsort((gts, -iou, rows))
    order = order[first_of_each(rows[order])]
    best, best_iou = np.full(count, -1), np.zeros(count)
    best[rows[order]], best_iou[rows[order]] = gts[order], iou[order]
    return best, best_iou


def find_at(nearest: Nearest, found: Ranked, objects: GroundTruth, region: np.ndarray, threshold: float) -> Found:
    """What the detections hit at an IoU threshold of 0.5 or more, by the rules of COCO's evaluation."""
    count, most = len(found.rows), len(region)
    pairs = nearest.candidates.take(nearest.candidates.iou >= threshold)
    hit = match_greedily(pairs.rows, pairs.objects, count, most)
    hit_iou = np.zeros(count)
    of_hit = hit[pairs.rows] == pairs.objects
    hit_iou[pairs.rows[of_hit]] = pairs.iou[of_hit]
    left = nearest.regions.take((nearest.regions.iou >= threshold) & (hit[nearest.regions.rows] < 0))
    ignored = match_greedily(left.rows, left.objects, count, most, objects.crowd) >= 0
    ignored |= (hit < 0) & ~in_range(found.areas)

    taken = np.zeros(most, bool)
    taken[hit[hit >= 0]] = True
    moves = (hit < 0) & (nearest.own_iou > 0) & (nearest.own_iou < threshold)
    renames = (hit < 0) & ~moves & (nearest.other_iou >= threshold)
    target = np.select([moves, renames], [nearest.own, nearest.other], -1)
    able = np.flatnonzero(target >= 0)
    able = able[~taken[target[able]]]
    first = np.full(most, count)
    np.minimum.at(first, target[able], able)  # detections of an image stand by descending score
    mends = np.zeros(count, bool)
    mends[first[first < count]] = True
    return Found(hit, hit_iou, ignored, mends, ~region & ~taken & (first == count))
