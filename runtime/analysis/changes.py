"""What changed from one model's detections to another's: gained, lost, moved and rescored, by image and class.

Detections of an image and class are matched by IoU, the highest first and at least 0.5, whatever their score's order.
First those that both have the score that counts; then what is left with detections below it, since a detection whose
score slipped below is lost, but its box is still there. Of equal IoUs, the closer scores are matched. All rules are the
same for both sides: exchanging the two exchanges gained and lost.

I images, K classes, P matched detections, L lost, G gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..coco.results import Results
from ..detection_filter import DetectionFilter
from .pairs import match_greedily, overlapping
from .ranking import Ranked, rank_detections
from .selection import select

CHANGE_KINDS = ("gained", "lost", "moved", "rescored")
SAME_BOX = 0.5  # the least IoU of two detections that are taken for one
MOVED = 0.9  # the IoU below which a detection has moved
RESCORED = 0.05  # the least difference of scores with which a detection is rescored


@dataclass(frozen=True)
class Changes:
    """The changes of detections that have the score in one of the two results. Rows are those of the results."""

    classes: tuple[str, ...]  # [K]
    before: np.ndarray  # int64 [P] rows of matched detections, both with the score
    after: np.ndarray  # int64 [P]
    iou: np.ndarray  # float64 [P] of their boxes
    shift: np.ndarray  # float64 [P] score after minus score before
    moved: np.ndarray  # bool [P]
    rescored: np.ndarray  # bool [P]; a detection may be moved and rescored
    lost: np.ndarray  # int64 [L] rows of `before`
    lost_to: np.ndarray  # int64 [L] the row of `after` whose score is too low, −1: there is none
    gained: np.ndarray  # int64 [G] rows of `after`
    gained_from: np.ndarray  # int64 [G] the row of `before` whose score is too low, −1: there is none
    per_class: dict[str, np.ndarray]  # int64 [K] by CHANGE_KINDS
    image_ids: np.ndarray  # int64 [I] of the compared images, the most changed first; of equal ones, the lower id
    per_image: dict[str, np.ndarray]  # int64 [I] by CHANGE_KINDS
    # float64 [I]: the sum of the scores that came and went. Gained and lost detections count by their scores, or by the
    # difference where the box is still there; moved ones by 1 − IoU, rescored ones by the difference.
    amounts: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        """How many detections changed, by CHANGE_KINDS."""
        return {kind: int(values.sum()) for kind, values in self.per_class.items()}

    @property
    def unchanged(self) -> int:
        """How many matched detections neither moved nor were rescored."""
        return int((~self.moved & ~self.rescored).sum())

    @property
    def changed_images(self) -> int:
        """How many images have a change."""
        return int((np.sum(list(self.per_image.values()), axis=0) > 0).sum())

    @property
    def moved_iou(self) -> float | None:
        """The median IoU of the moved detections; None where none moved."""
        return float(np.median(self.iou[self.moved])) if self.moved.any() else None

    @property
    def score_shift(self) -> float | None:
        """The median of score after minus score before, of all matched detections; None where there are none."""
        return float(np.median(self.shift)) if len(self.shift) else None


def find_changes(
    truth: GroundTruth,
    before: Results,
    after: Results,
    image_ids: Sequence[int] | np.ndarray | None = None,
    *,
    min_score: float,
    category_ids: tuple[int, ...] | None = None,
    moved: float = MOVED,
    rescored: float = RESCORED,
) -> Changes:
    """Compare two results on all images or on those of `image_ids`; `truth` gives the images and classes.

    `category_ids` restricts both to some categories. Rows of the changes are those of the results given, so that
    `Errors.kinds` says whether a lost detection was a hit. Raises CocoError as `runtime.coco.score`.
    """
    selection = select(truth, image_ids, DetectionFilter(category_ids=category_ids))
    old, new = (rank_detections(selection, results, most=None) for results in (before, after))
    old_counts, new_counts = old.scores >= min_score, new.scores >= min_score
    match = _match(old, new, old_counts, new_counts)
    back = np.full(len(new.rows), -1)
    back[match[match >= 0]] = np.flatnonzero(match >= 0)
    slipped = _match(old, new, old_counts & (match < 0), ~new_counts)
    risen = _match(new, old, new_counts & (back < 0), ~old_counts)

    a = np.flatnonzero(match >= 0)
    b = match[a]
    iou, shift = _iou(old.boxes[a], new.boxes[b]), new.scores[b] - old.scores[a]
    has_moved, is_rescored = iou < moved, np.abs(shift) >= rescored
    lost, gained = np.flatnonzero(old_counts & (match < 0)), np.flatnonzero(new_counts & (back < 0))
    lost_to, gained_from = slipped[lost], risen[gained]

    changed = {
        "gained": (new.images[gained], new.labels[gained]),
        "lost": (old.images[lost], old.labels[lost]),
        "moved": (old.images[a[has_moved]], old.labels[a[has_moved]]),
        "rescored": (old.images[a[is_rescored]], old.labels[a[is_rescored]]),
    }
    amounts = np.zeros(len(truth.image_ids))
    for images, values in (
        (new.images[gained], _difference(new.scores[gained], old.scores, gained_from)),
        (old.images[lost], _difference(old.scores[lost], new.scores, lost_to)),
        (old.images[a[has_moved]], 1 - iou[has_moved]),
        (old.images[a[is_rescored]], np.abs(shift[is_rescored])),
    ):
        amounts += np.bincount(images, values, len(amounts))
    compared = np.flatnonzero(selection.images)
    order = compared[np.argsort(-np.round(amounts[compared], 9), kind="stable")]
    return Changes(
        classes=truth.classes,
        before=old.rows[a],
        after=new.rows[b],
        iou=iou,
        shift=shift,
        moved=has_moved,
        rescored=is_rescored,
        lost=old.rows[lost],
        lost_to=_rows(new, lost_to),
        gained=new.rows[gained],
        gained_from=_rows(old, gained_from),
        per_class={kind: np.bincount(labels, minlength=len(truth.classes)) for kind, (_, labels) in changed.items()},
        image_ids=truth.image_ids[order],
        per_image={
            kind: np.bincount(images, minlength=len(truth.image_ids))[order] for kind, (images, _) in changed.items()
        },
        amounts=amounts[order],
    )


def _match(old: Ranked, new: Ranked, old_chosen: np.ndarray, new_chosen: np.ndarray) -> np.ndarray:
    """For each detection the one of the other side that it is matched with, int64 [N], −1: none."""
    own, theirs = np.flatnonzero(old_chosen), np.flatnonzero(new_chosen)
    rows, others, iou = overlapping(old.boxes[own], old.images[own], new.boxes[theirs], new.images[theirs], SAME_BOX)
    rows, others = own[rows], theirs[others]
    same = old.labels[rows] == new.labels[others]
    rows, others, iou = rows[same], others[same], iou[same]
    # Sums of both sides: among pairs that share a detection they differ as the others do, whichever side is first.
    scores, boxes = old.scores[rows] + new.scores[others], old.boxes[rows] + new.boxes[others]
    apart = np.abs(old.scores[rows] - new.scores[others])
    order = np.lexsort((*boxes.T[::-1], -scores, apart, -np.round(iou, 9)))
    return match_greedily(rows[order], others[order], len(old.rows), len(new.rows))


def _iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of boxes [n, 4] x, y, width, height, pair by pair; at most 1."""
    ends = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    shared = np.maximum(ends - np.maximum(boxes[:, :2], others[:, :2]), 0).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + others[:, 2:].prod(axis=1) - shared
    return np.minimum(shared / union, 1)  # matched boxes have a size


def _difference(scores: np.ndarray, others: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """How far each score is from that of the detection matched with it, or from 0 where there is none."""
    return scores - np.where(matched >= 0, np.append(others, 0.0)[matched], 0)


def _rows(found: Ranked, places: np.ndarray) -> np.ndarray:
    """Rows of the results for places among the detections; −1 stays."""
    return np.where(places >= 0, np.append(found.rows, -1)[places], -1)
