"""Matches detections with the objects of the ground truth, as pycocotools' COCOeval does; it computes the IoU here too.

Ten IoU thresholds and four areas make 40 matchings that do not depend on one another. Each has a bit in the masks of
this module, 10 · area + threshold, so that a detection and an object are compared once for all 40.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pycocotools import mask

from .ground_truth import GroundTruth
from .results import Results, in_parts, take
from .row_store import ranges, release

IOUS = np.linspace(0.5, 0.95, 10)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # [4, 2] pixels², both ends included
MOST = (1, 10, 100)  # best detections of an image and category that count
IMAGES_AT_A_TIME = 256  # bounds the memory that matching needs

# A detection that counts, and the row of its image in `GroundTruth.image_ids`. What is matched with a crowd, or with an
# object of another size, is ignored as well.
MATCH = np.dtype(
    [
        ("score", np.float64),
        ("matched", np.uint64),
        ("ignored", np.uint64),
        ("image", np.int32),
        ("rank", np.uint8),
    ]
)

_AREA_BITS = np.array([((1 << len(IOUS)) - 1) << (len(IOUS) * area) for area in range(len(AREAS))], np.uint64)
_ALL_BITS = int(_AREA_BITS.sum())
_IN_EACH_AREA = sum(1 << (len(IOUS) * area) for area in range(len(AREAS)))  # repeats the bits of one area


def bit(area: int, threshold: int) -> np.uint64:
    """The bit of a matching in the masks: `area` is a row of AREAS, `threshold` one of IOUS."""
    return np.uint64(1 << (len(IOUS) * area + threshold))


def inside(areas: np.ndarray) -> np.ndarray:
    """Which area ranges each area falls into, bool [n, 4]."""
    return (areas[:, None] >= AREAS[:, 0]) & (areas[:, None] <= AREAS[:, 1])


def match(
    truth: GroundTruth, results: Results, images: np.ndarray, categories: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Match results of known images and categories with the objects.

    `images` (bool [I]) and `categories` (bool [K]) mask the rows of `truth.image_ids` and `truth.category_ids` that
    count. Yields categories (rows, rising) and MATCH rows of some images at a time. Over all that is yielded, those of
    a category are sorted by image and descending score.
    """
    run_images, firsts, counts = _runs(truth, results, images)
    for first in range(0, len(images), IMAGES_AT_A_TIME):
        bounds = (first, first + IMAGES_AT_A_TIME)
        runs = slice(*np.searchsorted(run_images, bounds).tolist())
        part = take(results, ranges(firsts[runs], counts[runs]))
        release(results.scores)
        labels = np.searchsorted(truth.category_ids, part.category_ids)
        chosen = categories[labels]
        if chosen.any():
            objects = truth.select(slice(*np.searchsorted(truth.images, bounds).tolist()))
            rows = np.repeat(run_images[runs], counts[runs])
            yield _match(objects, take(part, chosen), rows[chosen], labels[chosen])


def _runs(truth: GroundTruth, results: Results, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of results of one image: the image's row, the first result, the number of results. Sorted by image, stable.

    Only images whose mask `wanted` is true.
    """
    found, before = [np.empty((3, 0), np.int64)], 0
    for part in in_parts(results):
        firsts = np.flatnonzero(np.diff(part.image_ids, prepend=part.image_ids[0] - 1))
        rows = np.searchsorted(truth.image_ids, part.image_ids[firsts])
        found.append(np.stack([rows, before + firsts, np.diff(firsts, append=len(part))])[:, wanted[rows]])
        before += len(part)
    runs = np.concatenate(found, axis=1)
    images, firsts, counts = runs[:, np.argsort(runs[0], kind="stable")]
    return images, firsts, counts


def _match(
    objects: GroundTruth, results: Results, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `match`, of some images' objects and results; `images` [N] and `labels` [N] are the results' rows."""
    order = np.lexsort((-results.scores, images, labels))
    starts, counts = _groups(labels[order], images[order])
    ranks = ranges(np.zeros(len(starts), np.int64), counts)
    order, ranks = order[ranks < MOST[-1]], ranks[ranks < MOST[-1]]
    labels, images, boxes = labels[order], images[order], results.boxes[order]

    found = np.zeros(len(order), MATCH)
    found["score"], found["image"], found["rank"] = results.scores[order], images, ranks
    objects = objects.select(np.lexsort((objects.images, objects.categories)))
    _match_pairs(*_overlaps(objects, boxes, images, labels), objects, found)
    areas = boxes[:, 2] * boxes[:, 3] if results.areas is None else results.areas[order]
    outside = np.where(inside(areas), np.uint64(0), _AREA_BITS).sum(axis=1, dtype=np.uint64)
    found["ignored"] |= outside & ~found["matched"]
    return labels, found


def _overlaps(
    objects: GroundTruth, boxes: np.ndarray, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a detection and an object of its image and category whose IoU is 0.5 or more: rows of both, and the IoU.

    Sorted by detection, then by descending IoU; of equal ones, the last object comes first.
    """
    none = np.empty(0, np.int64)
    row_parts, gt_parts, iou_parts = [none], [none], [np.empty(0)]
    gt_of = _extents(objects.categories, objects.images)
    crowd = objects.crowd.astype(np.uint8)
    for place, (first, last) in _extents(labels, images).items():
        if place in gt_of:
            first_gt, last_gt = gt_of[place]
            iou = mask.iou(boxes[first:last], objects.boxes[first_gt:last_gt], crowd[first_gt:last_gt])
            near = np.nonzero(iou >= IOUS[0])
            row_parts.append(near[0] + first)
            gt_parts.append(near[1] + first_gt)
            iou_parts.append(iou[near])
    rows, gts, iou = np.concatenate(row_parts), np.concatenate(gt_parts), np.concatenate(iou_parts)
    order = np.lexsort((-gts, -iou, rows))
    return rows[order], gts[order], iou[order]


def _match_pairs(rows: np.ndarray, gts: np.ndarray, iou: np.ndarray, objects: GroundTruth, found: np.ndarray) -> None:
    """Match detections, the best first, with the objects that they overlap; write into `matched` and `ignored`.

    A detection takes the free object that it overlaps most; among equals, the last. It takes an ignored object (a
    crowd, or an object of another size) only if there is no other; a crowd may be taken several times.
    """
    above = ((1 << np.searchsorted(IOUS, iou, side="right")) - 1) * _IN_EACH_AREA
    ignored_of = (
        np.where(objects.crowd[:, None] | ~inside(objects.areas), _AREA_BITS, np.uint64(0))
        .sum(axis=1, dtype=np.uint64)
        .tolist()
    )
    free_of = [_ALL_BITS] * len(ignored_of)  # by object: the matchings in which it is not taken
    crowd = objects.crowd.tolist()
    starts, counts = _groups(rows)
    pairs = list(zip(gts.tolist(), above.tolist(), strict=True))
    matched, ignored = [], []
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        to_match, taken_ignored = _ALL_BITS, 0
        options = pairs[start : start + count]
        for gt, bits in options:
            taken = bits & to_match & free_of[gt] & ~ignored_of[gt]
            free_of[gt] &= ~taken
            to_match &= ~taken
        for gt, bits in options:
            taken = bits & to_match & free_of[gt] & ignored_of[gt]
            if not crowd[gt]:
                free_of[gt] &= ~taken
            to_match &= ~taken
            taken_ignored |= taken
        matched.append(_ALL_BITS & ~to_match)
        ignored.append(taken_ignored)
    found["matched"][rows[starts]] = matched
    found["ignored"][rows[starts]] = ignored


def _extents(labels: np.ndarray, images: np.ndarray) -> dict[tuple[int, int], tuple[int, int]]:
    """First row of each category and image, and the row after its last; those of a category and image adjoin."""
    starts, counts = _groups(labels, images)
    places = zip(labels[starts].tolist(), images[starts].tolist(), strict=True)
    return dict(zip(places, zip(starts.tolist(), (starts + counts).tolist(), strict=True), strict=True))


def _groups(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row and number of rows of each run in which all keys stay the same."""
    count = len(keys[0])
    changes = np.zeros(count, bool)
    changes[:1] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    starts = np.flatnonzero(changes)
    return starts, np.diff(starts, append=count)
