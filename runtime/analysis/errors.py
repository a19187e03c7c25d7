"""Errors by kind as TIDE defines them (arXiv 2008.08115), and what mending each kind would be worth in AP.

A detection that hits no object is, tested in this order:

- `localisation`: its IoU with an object of its class is 0.1 or more, but below the threshold of a hit;
- `class`: its IoU with an object of another class would make a hit;
- `duplicate`: it lies on an object of its class that a better detection hit;
- `both`: its IoU with an object of another class is 0.1 or more;
- `background`: it lies on nothing.

An object that is not hit is `missed` unless a `class` or `localisation` error lies on it. Each kind is mended alone:
`class` and `localisation` errors become hits of the object that they overlap most, where it is not hit; of several on
one object the best score does, and the others go. `both`, `duplicate` and `background` errors go. Missed objects are no
longer to be found. Two more figures mend what all kinds have in common: `false positives` go, or what no detection hits
(`false negatives`) is no longer to be found.

The authors' own program, tidecv 1.0.1, settles what the paper leaves open: the order of the tests, and that of all
`class` and `localisation` errors on an object only one can become a hit. Where a detection is ignored, since it lies in
a crowd or in a region to ignore, it is no error, but may become a hit as in tidecv. Otherwise AP is COCO's here and
equals that of `runtime.coco.score`, where tidecv's does not:

- 100 detections of an image and class count, in tidecv 100 of an image;
- classes without objects are left out, in tidecv they have an AP of 0 where they have detections. Classes that mending
  leaves without objects are left out alike. Where no class is left, nothing is left to find, and AP counts as 1;
- equal scores keep their order, in tidecv errors go before hits once a kind is mended;
- what makes a hit (an IoU of exactly the threshold) is no `localisation` error, and an IoU of exactly 0.1 with another
  class makes `both` rather than `background`;
- a detection of which exactly the threshold lies in a crowd is ignored;
- recalls are COCO's, of which some differ from tidecv's in the last bit.

I images, A annotations, K classes, n results; N detections and M objects that count; T = 10 IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.matching import IOUS
from ..coco.results import Results
from ..coco.scoring import RECALLS, mean_of_measured, precision_at_recalls
from ..detection_filter import KEEP_ALL, DetectionFilter
from .nearest import FOREGROUND, Found, Nearest, find_at, find_nearest
from .ranking import Ranked, rank_detections
from .selection import select

KINDS = ("correct", "class", "localisation", "both", "duplicate", "background", "ignored")  # of detections
ERROR_KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
SPECIAL_KINDS = ("false positives", "false negatives")
CORRECT, CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, IGNORED = range(len(KINDS))
NOT_COUNTED = -1


@dataclass(frozen=True)
class Errors:
    """The errors of some results. Kinds, objects and counts are at IoU 0.5."""

    classes: tuple[str, ...]  # [K] of the ground truth
    kinds: np.ndarray  # int8 [n] index into KINDS by result; NOT_COUNTED: of another image, class or score, or too many
    # By result: the row of the annotation that it hits; of an error, the object that it overlaps most of its own class
    # (`localisation`, `duplicate`) or of another (`class`, `both`). −1: none.
    objects: np.ndarray  # int64 [n]
    ious: np.ndarray  # float64 [n] with that object; 0: none
    found_by: np.ndarray  # int64 [A] the row of the result that hits each annotation, −1 for none
    missed: np.ndarray  # bool [A]
    counts: dict[str, int]  # by ERROR_KINDS
    per_class: dict[str, np.ndarray]  # int64 [K] by ERROR_KINDS: the class of the detection; of `missed`, the object's
    ap: float  # as `runtime.coco.score` has them; −1: no object to measure on
    ap50: float
    # By ERROR_KINDS and SPECIAL_KINDS: what AP, and AP at IoU 0.5 (TIDE's own figure), gain when all errors of a kind
    # are mended. AP is the mean over the ten thresholds, with the kinds at each. −1: no object to measure on.
    worth: dict[str, float]
    worth50: dict[str, float]
    worth50_per_class: dict[str, np.ndarray]  # float64 [K] by the same; NaN where the class is not measured


def find_errors(
    truth: GroundTruth,
    results: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    kept: DetectionFilter = KEEP_ALL,
) -> Errors:
    """The errors of results, on all images or on those of `image_ids`.

    Only results that the filter keeps count; its categories restrict the ground truth too. Raises CocoError as
    `runtime.coco.score`.
    """
    selection = select(truth, image_ids, kept)
    found = rank_detections(selection, results)
    rows, region = selection.rows, selection.regions
    objects = truth.select(rows)
    nearest = find_nearest(found, objects, region)
    to_find = np.bincount(objects.categories[~region], minlength=len(truth.classes))
    lists = _Lists(found, to_find)
    mended = np.full((len(IOUS), 1 + len(ERROR_KINDS) + len(SPECIAL_KINDS), len(RECALLS), len(to_find)), -1.0)
    first: tuple[Found, np.ndarray] | None = None
    for place, threshold in enumerate(IOUS.tolist()):
        at = find_at(nearest, found, objects, region, threshold)
        kinds = _kinds(nearest, at, threshold)
        first = (at, kinds) if first is None else first
        for number, precision in enumerate(_mend_each(lists, nearest, objects, at, kinds)):
            mended[place, number] = precision
    assert first is not None  # there are thresholds
    at, kinds = first
    worth, worth50 = _worth(mended), _worth(mended[:1])
    class_ap = mended[0].mean(axis=1)  # [kinds, K]
    class_ap[class_ap < 0] = np.nan
    names = (*ERROR_KINDS, *SPECIAL_KINDS)
    counted = {name: found.labels[(kinds == KINDS.index(name)) & ~at.ignored] for name in ERROR_KINDS[:-1]}
    counted["missed"] = objects.categories[at.missed]
    kinds = np.where(at.ignored, IGNORED, kinds)
    near = _object_of(nearest, at, kinds)
    return Errors(
        classes=truth.classes,
        kinds=_by_row(found.rows, kinds, len(results), NOT_COUNTED, np.int8),
        objects=_by_row(found.rows, np.where(near >= 0, rows[near] if len(rows) else -1, -1), len(results), -1),
        ious=_by_row(found.rows, _iou_of(nearest, at, kinds), len(results), 0, np.float64),
        found_by=_by_row(rows[at.hit[at.hit >= 0]], found.rows[at.hit >= 0], len(truth.images), -1),
        missed=_by_row(rows, at.missed, len(truth.images), False, bool),
        counts={name: len(labels) for name, labels in counted.items()},
        per_class={name: np.bincount(labels, minlength=len(to_find)) for name, labels in counted.items()},
        ap=mean_of_measured(mended[:, 0]),
        ap50=mean_of_measured(mended[0, 0]),
        worth=dict(zip(names, worth, strict=True)),
        worth50=dict(zip(names, worth50, strict=True)),
        worth50_per_class=dict(zip(names, class_ap[1:] - class_ap[0], strict=True)),
    )


def _kinds(nearest: Nearest, at: Found, threshold: float) -> np.ndarray:
    """The kind of each detection; of an ignored one, the error that it would be. Index into KINDS, int8 [N]."""
    own, other = nearest.own_iou, nearest.other_iou
    tests = [
        at.hit >= 0,
        (own >= FOREGROUND) & (own < threshold),
        other >= threshold,
        own >= threshold,
        other >= FOREGROUND,
    ]
    return np.select(tests, [CORRECT, LOCALISATION, CLASS, DUPLICATE, BOTH], BACKGROUND).astype(np.int8)


class _Lists:
    """Lists of detections by class and descending score, and the precision that they give."""

    def __init__(self, found: Ranked, to_find: np.ndarray) -> None:
        self.to_find = to_find
        self.labels = found.labels
        order = np.argsort(-found.scores, kind="stable")  # over all images
        self._places = np.empty(len(order), np.int64)
        self._places[order] = np.arange(len(order))
        self._order = self._sorted(found.labels)

    def _sorted(self, labels: np.ndarray) -> np.ndarray:
        return np.argsort(labels * len(labels) + self._places, kind="stable")

    def precision(
        self,
        kept: np.ndarray,
        hits: np.ndarray,
        labels: np.ndarray | None = None,
        to_find: np.ndarray | None = None,
    ) -> np.ndarray:
        """Precision at COCO's 101 recalls, float64 [101, K]; −1 for a class without objects.

        Detections of `kept` (bool [N]) are listed, and `hits` (bool [N]) says which are hits. `labels` and `to_find`
        replace the detections' classes and the number of objects by class.
        """
        order = self._order if labels is None else self._sorted(labels)
        labels = self.labels if labels is None else labels
        to_find = self.to_find if to_find is None else to_find
        order = order[kept[order]]
        hits = hits[order]
        misses = np.cumsum(~hits)
        bounds = np.searchsorted(labels[order], np.arange(len(to_find) + 1))
        before = np.concatenate([[0], misses])[bounds]
        at_hits = np.concatenate([[0], np.cumsum(hits)])[bounds]
        misses = misses[hits]
        precision = np.full((len(RECALLS), len(to_find)), -1.0)
        for label in np.flatnonzero(to_find).tolist():
            of_class = misses[at_hits[label] : at_hits[label + 1]] - before[label]
            precision[:, label] = precision_at_recalls(of_class, int(to_find[label]))[0]
        return precision


def _mend_each(lists: _Lists, nearest: Nearest, objects: GroundTruth, at: Found, kinds: np.ndarray) -> list[np.ndarray]:
    """The precision as it is, then with each of ERROR_KINDS and SPECIAL_KINDS mended, each [101, K]."""
    counted, hits = ~at.ignored, kinds == CORRECT
    precision = [lists.precision(counted, hits)]
    is_class, is_place = kinds == CLASS, kinds == LOCALISATION
    turned = at.mends & is_class
    labels = lists.labels.copy()
    labels[turned] = objects.categories[nearest.other[turned]]
    precision.append(lists.precision((counted & ~is_class) | turned, hits | turned, labels=labels))
    turned = at.mends & is_place
    precision.append(lists.precision((counted & ~is_place) | turned, hits | turned))
    precision += [lists.precision(counted & (kinds != kind), hits) for kind in (BOTH, DUPLICATE, BACKGROUND)]
    missed = np.bincount(objects.categories[at.missed], minlength=len(lists.to_find))
    precision.append(lists.precision(counted, hits, to_find=lists.to_find - missed))
    precision.append(lists.precision(hits, hits))
    found = np.bincount(lists.labels[hits], minlength=len(lists.to_find))
    precision.append(lists.precision(counted, hits, to_find=found))
    return precision


def _worth(mended: np.ndarray) -> list[float]:
    """What each mending gains, over the thresholds of `mended` [T, kinds, 101, K]; the first kind is AP as it is."""
    before = [mean_of_measured(precision) for precision in mended[:, 0]]
    if min(before) < 0:
        return [-1.0] * (mended.shape[1] - 1)
    after = np.array([[mean_of_measured(precision) for precision in kinds] for kinds in mended[:, 1:]])
    after[after < 0] = 1.0  # nothing is left to find
    # A loss can only come of rounding recalls to 101.
    return np.maximum((after - np.array(before)[:, None]).mean(axis=0), 0).tolist()


def _object_of(nearest: Nearest, at: Found, kinds: np.ndarray) -> np.ndarray:
    """The object that belongs to each detection's kind, int64 [N], −1 for none."""
    own, other = np.isin(kinds, (LOCALISATION, DUPLICATE)), np.isin(kinds, (CLASS, BOTH))
    return np.select([kinds == CORRECT, own, other], [at.hit, nearest.own, nearest.other], -1)


def _iou_of(nearest: Nearest, at: Found, kinds: np.ndarray) -> np.ndarray:
    """The IoU with that object, float64 [N], 0 for none."""
    own, other = np.isin(kinds, (LOCALISATION, DUPLICATE)), np.isin(kinds, (CLASS, BOTH))
    return np.select([kinds == CORRECT, own, other], [at.hit_iou, nearest.own_iou, nearest.other_iou], 0.0)


def _by_row(
    rows: np.ndarray, values: np.ndarray, count: int, default: float, dtype: type[np.generic] | type[bool] = np.int64
) -> np.ndarray:
    """The values of some rows, and the default elsewhere, [count]."""
    full = np.full(count, default, dtype)
    full[rows] = values
    return full
