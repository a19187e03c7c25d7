"""COCO's definition of AP and AR for boxes, on arrays: equals pycocotools' COCOeval bit for bit.

COCOeval itself keeps every annotation, detection and match as Python objects: its memory grows with the data set, and
500 images take it longer than a GPU takes to detect on them. faster-coco-eval gives the same numbers, but takes longer
from 500 images on and nine times the memory or more (benchmarks/coco_benchmark.py). pycocotools computes the IoU.

I images, A annotations, K categories, N detections; 4 areas (all, small, medium, large), T = 10 IoU thresholds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pycocotools import mask

from .ground_truth import GroundTruth
from .results import Results, take

# In the order of pycocotools' `stats`.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MOST = (1, 10, 100)  # best detections of an image and category that count

_IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # [4, 2] pixels², both ends included
IMAGES_AT_A_TIME = 256  # matched together; bounds the memory that matching needs beside its result
_ALL_BITS = np.uint16((1 << len(_IOUS)) - 1)


@dataclass(frozen=True)
class _Matches:
    """The detections of a category that count, sorted by image and descending score.

    `matched` and `ignored` have a bit per IoU threshold and a column per area.
    """

    scores: np.ndarray  # float64 [N]
    ranks: np.ndarray  # uint8 [N] within the image
    matched: np.ndarray  # uint16 [N, 4]
    ignored: np.ndarray  # uint16 [N, 4]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall; −1 where there is no object to measure on."""

    precision: np.ndarray  # [T, 101 recalls, K, 4] with the 100 best detections
    recall: np.ndarray  # [T, K, 4, 3 of MOST]; with fewer than 100 detections only over all areas


def precision_recall(
    truth: GroundTruth, results: Results, image_ids: Sequence[int] | np.ndarray | None = None
) -> PrecisionRecall:
    """Precision and recall of results of known images and categories, on all images or those of `image_ids`."""
    wanted = np.isin(truth.image_ids, truth.image_ids if image_ids is None else np.asarray(image_ids, np.int64))
    precision = np.full((len(_IOUS), len(_RECALLS), len(truth.category_ids), len(_AREAS)), -1.0)
    recall = np.full((len(_IOUS), len(truth.category_ids), len(_AREAS), len(MOST)), -1.0)
    for category in range(len(truth.category_ids)):  # one at a time, so that memory holds the matches of one
        objects = truth.select(truth.categories == category)
        to_find = _inside(objects.areas)[wanted[objects.images] & ~objects.crowd].sum(axis=0)  # [4]
        if to_find.any():
            matches = _match_category(objects, results, truth.category_ids[category], wanted)
            _accumulate(matches, to_find, precision[:, :, category], recall[:, category])
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


def _match_category(objects: GroundTruth, results: Results, category_id: int, wanted: np.ndarray) -> _Matches:
    """Match the detections of a category with its objects, on the images that are `wanted` (bool [I])."""
    rows = np.flatnonzero(results.category_ids == category_id)
    images = np.searchsorted(objects.image_ids, results.image_ids[rows])
    order = np.argsort(images, kind="stable")
    rows, images = rows[order], images[order]
    rows, images = rows[wanted[images]], images[wanted[images]]
    firsts = np.arange(0, len(wanted) + IMAGES_AT_A_TIME, IMAGES_AT_A_TIME)
    found = _Matches(
        np.empty(len(rows)),
        np.empty(len(rows), np.uint8),
        *np.zeros((2, len(rows), len(_AREAS)), np.uint16),
    )
    count = 0
    for (first, last), (begin, end) in zip(
        pairwise(np.searchsorted(images, firsts).tolist()),
        pairwise(np.searchsorted(objects.images, firsts).tolist()),
        strict=True,
    ):
        part = _match(objects.select(slice(begin, end)), images[first:last], take(results, rows[first:last]))
        count += len(part.scores)
        for field in dataclasses.fields(_Matches):
            getattr(found, field.name)[count - len(part.scores) : count] = getattr(part, field.name)
    return _Matches(*(getattr(found, field.name)[:count] for field in dataclasses.fields(_Matches)))


def _match(objects: GroundTruth, images: np.ndarray, results: Results) -> _Matches:
    """Match the detections of one category at each IoU threshold and area. `images` [N] are rising rows of images."""
    order = np.lexsort((-results.scores, images))
    starts = np.flatnonzero(np.diff(images, prepend=-1))
    ranks = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    kept = ranks < MOST[-1]
    order, images, ranks = order[kept], images[kept], ranks[kept]

    boxes = results.boxes[order]
    matched, ignored = np.zeros((2, len(order), len(_AREAS)), np.uint16)
    gt_ignored = objects.crowd[:, None] | ~_inside(objects.areas)  # [A, 4]
    for image in np.intersect1d(images, objects.images):
        rows, gt = _slice(images, image), _slice(objects.images, image)
        iou = mask.iou(boxes[rows], objects.boxes[gt], objects.crowd[gt].astype(np.uint8))
        _match_group(iou, objects.crowd[gt].tolist(), gt_ignored[gt].T.tolist(), matched[rows], ignored[rows])
    outside = ~_inside(boxes[:, 2] * boxes[:, 3])  # [N, 4]
    ignored |= np.where(outside, ~matched & _ALL_BITS, np.uint16(0))
    return _Matches(results.scores[order], ranks.astype(np.uint8), matched, ignored)


def _match_group(
    iou: np.ndarray, crowd: list[bool], gt_ignored: list[list[bool]], matched: np.ndarray, ignored: np.ndarray
) -> None:
    """Match one image's detections of a category (iou [n, G]), best first, into matched and ignored [n, 4].

    A detection takes the free object that it overlaps most; among equals, the last. It takes an ignored object (a
    crowd, or an object of another size) only if there is no other; a crowd may be taken several times.
    """
    overlaps: dict[int, list[tuple[int, float]]] = {}
    for row, gt in np.argwhere(iou >= _IOUS[0]).tolist():
        overlaps.setdefault(row, []).append((gt, float(iou[row, gt])))
    for area, is_ignored in enumerate(gt_ignored):
        ranked = [(row, sorted(options, key=lambda o: is_ignored[o[0]])) for row, options in overlaps.items()]
        for bit, threshold in enumerate(_IOUS.tolist()):
            taken: set[int] = set()
            for row, options in ranked:
                best, best_iou = -1, threshold
                for gt, value in options:
                    if best >= 0 and is_ignored[gt] and not is_ignored[best]:
                        break
                    if value >= best_iou and (gt not in taken or crowd[gt]):
                        best, best_iou = gt, value
                if best >= 0:
                    taken.add(best)
                    matched[row, area] |= 1 << bit
                    if is_ignored[best]:
                        ignored[row, area] |= 1 << bit


def _accumulate(matches: _Matches, to_find: np.ndarray, precision: np.ndarray, recall: np.ndarray) -> None:
    """Write a category's precision [T, 101, 4] at each recall, and the recall [T, 4, 3] that it reaches.

    `to_find` [4] counts the objects of each area; an area without objects keeps its −1.
    """
    rows = np.argsort(-matches.scores, kind="stable")
    for area in np.flatnonzero(to_find):
        count = int(to_find[area])
        for column, most in enumerate(MOST):
            if most == MOST[-1] or area == 0:
                chosen = rows[matches.ranks[rows] < most]
                matched, ignored = matches.matched[chosen, area], matches.ignored[chosen, area]
                for bit in range(len(_IOUS)):
                    curve, reached = _curve((matched >> bit) & 1 > 0, (ignored >> bit) & 1 > 0, count)
                    recall[bit, area, column] = reached
                    if most == MOST[-1]:
                        precision[bit, :, area] = curve


def _curve(matched: np.ndarray, ignored: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Precision at each of the 101 recalls, and the last recall, of detections by descending score."""
    hits = np.cumsum(matched & ~ignored, dtype=np.float64)
    curve = np.zeros(len(_RECALLS))
    if not len(hits):
        return curve, 0.0
    precisions = np.cumsum(~matched & ~ignored, dtype=np.float64)  # misses for now
    precisions += hits
    precisions += np.spacing(1)
    np.divide(hits, precisions, out=precisions)
    np.maximum.accumulate(precisions[::-1], out=precisions[::-1])
    hits /= count  # now the recalls
    at = np.searchsorted(hits, _RECALLS, side="left")
    curve[at < len(hits)] = precisions[at[at < len(hits)]]
    return curve, float(hits[-1])


def _inside(areas: np.ndarray) -> np.ndarray:
    """Which area ranges each area falls into, bool [n, 4]."""
    return (areas[:, None] >= _AREAS[:, 0]) & (areas[:, None] <= _AREAS[:, 1])


def _slice(groups: np.ndarray, group: int) -> slice:
    """The rows where the rising `groups` have this value."""
    return slice(int(np.searchsorted(groups, group)), int(np.searchsorted(groups, group, side="right")))
