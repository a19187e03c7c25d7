"""Outputs of the deployed graph, and the detections read from them.

B images, K candidates, D the graph's number of detection rows (100).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .errors import UserError
from .manifest import Manifest, Thresholds
from .nms import nms


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best score first."""

    boxes: np.ndarray  # float32 [n, 4] xyxy
    scores: np.ndarray  # float32 [n]
    classes: np.ndarray  # int32 [n], 0-based

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self, classes: Sequence[str] = ()) -> Any:
        """The detections as `supervision.Detections`, for its annotators, trackers and zones.

        `classes` are the names by class index, as `Detector.classes` has them; with them the result has its
        `data["class_name"]`. The arrays are copies. Raises UserError where supervision isn't installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                f"to_supervision needs supervision, which cannot be imported ({error}): install atss-toolkit with the "
                "extra supervision"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.classes.astype(int),
            data={"class_name": np.array(classes, dtype=str)[self.classes]} if classes else {},
        )


@dataclass(frozen=True)
class RawOutputs:
    """The deployed graph's outputs, by name. An image with `nms_exact` 1 may have its candidates left out (score 0)."""

    num_detections: np.ndarray  # int32 [B, 1] number of valid detection rows
    detection_boxes: np.ndarray  # float32 [B, D, 4] xyxy in canvas pixels, best score first
    detection_scores: np.ndarray  # float32 [B, D]
    detection_classes: np.ndarray  # int32 [B, D]
    nms_exact: np.ndarray  # int32 [B, 1] 1: the rows equal greedy NMS; 0: NMS must be rerun on the candidates
    candidate_boxes: np.ndarray  # float32 [B, K, 4]
    candidate_scores: np.ndarray  # float32 [B, K], 0 in unused rows
    candidate_classes: np.ndarray  # int32 [B, K], −1 in unused rows


def first_images(raw: RawOutputs, count: int) -> RawOutputs:
    """The outputs of the first `count` images of a batch."""
    return RawOutputs(*(getattr(raw, field.name)[:count] for field in fields(RawOutputs)))


def concatenate_outputs(parts: Sequence[RawOutputs]) -> RawOutputs:
    """One batch of several, which one graph gave for one canvas size."""
    return RawOutputs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(RawOutputs)))


def empty_detections() -> Detections:
    """No detections."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def select(detections: Detections, rows: np.ndarray) -> Detections:
    """The detections at `rows` (indices or a mask)."""
    return Detections(detections.boxes[rows], detections.scores[rows], detections.classes[rows])


def postprocess(raw: RawOutputs, thresholds: Thresholds) -> list[Detections]:
    """Detections per image, in canvas pixels: the graph's rows if they are exact, else NMS of its candidates.

    The graph has applied the score threshold to class probabilities. Scores here are final, √(class · centerness), and
    may lie below the threshold.
    """
    return [
        _rows(raw, index) if raw.nms_exact[index, 0] else apply_nms(_candidates(raw, index), thresholds)
        for index in range(len(raw.num_detections))
    ]


def read_outputs(raw: RawOutputs, manifest: Manifest) -> list[Detections]:
    """As `postprocess`.

    Raises UserError for a class that the manifest doesn't name, because it belongs to another graph, for outputs of
    other shapes, and for boxes and scores that are not finite numbers, as weights beyond float's range give.
    """
    _check_shapes(raw)
    most, named = int(raw.detection_classes.max(initial=-1)), len(manifest.classes)
    if most >= named:
        raise UserError(
            f"the graph found class {most}, counted from 0, but its manifest names {named} classes: the two don't "
            "belong together; export the checkpoint again"
        )
    read = [raw.detection_boxes, raw.detection_scores]
    if not raw.nms_exact.all():
        read += [raw.candidate_boxes, raw.candidate_scores]
    if not all(np.isfinite(numbers).all() for numbers in read):
        raise UserError(
            "the graph's boxes or scores are not finite numbers: its weights are damaged, or too large for their "
            "precision; export the checkpoint again, and verify the file"
        )
    found = postprocess(raw, manifest.thresholds)
    if any(one.classes.min(initial=0) < 0 for one in found):
        raise UserError("the graph found a class below 0: it isn't one that was exported; export the checkpoint again")
    return found


def _check_shapes(raw: RawOutputs) -> None:
    """Raise UserError where the outputs don't belong together: a graph that was changed gives any shapes."""
    count = len(raw.detection_boxes)
    for kind, rows in (("detection", raw.detection_boxes), ("candidate", raw.candidate_boxes)):
        scores, classes = getattr(raw, f"{kind}_scores"), getattr(raw, f"{kind}_classes")
        if len(rows) != count or rows.shape[-1] != 4 or not rows.shape[:-1] == scores.shape == classes.shape:
            raise UserError(
                f"the graph's {kind}s have the shapes {rows.shape}, {scores.shape} and {classes.shape}, which don't "
                "belong together; export the checkpoint again"
            )
    numbers = raw.num_detections
    if not (
        numbers.shape == raw.nms_exact.shape == (count, 1) and numbers.max(initial=0) <= raw.detection_boxes.shape[1]
    ):
        raise UserError(f"the graph's numbers of detections don't fit {count} images; export the checkpoint again")


def nms_candidates(raw: RawOutputs) -> list[Detections]:
    """The input of NMS: each image's candidates, in canvas pixels and in no particular order."""
    return [_candidates(raw, index) for index in range(len(raw.num_detections))]


def _rows(raw: RawOutputs, index: int) -> Detections:
    count = int(raw.num_detections[index, 0])
    # Copies: a view would keep the whole batch's outputs, candidates included, alive as long as a result is.
    return Detections(
        raw.detection_boxes[index, :count].astype(np.float32),
        raw.detection_scores[index, :count].astype(np.float32),
        raw.detection_classes[index, :count].astype(np.int32),
    )


def _candidates(raw: RawOutputs, index: int) -> Detections:
    used = (raw.candidate_scores[index] > 0) & (raw.candidate_classes[index] >= 0)
    return Detections(
        raw.candidate_boxes[index][used].astype(np.float32),
        raw.candidate_scores[index][used].astype(np.float32),
        raw.candidate_classes[index][used].astype(np.int32),
    )


def apply_nms(found: Detections, thresholds: Thresholds) -> Detections:
    """Class-wise greedy NMS of one image's candidates; the detections that remain, best score first."""
    boxes = covered_areas(found.boxes, thresholds)
    return select(found, nms(boxes, found.scores, found.classes, thresholds.nms_iou, thresholds.detections))


def covered_areas(boxes: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Boxes [n, 4] xyxy whose overlaps NMS compares: grown by a pixel if they are legacy boxes."""
    return boxes if thresholds.box_growth is None else boxes + np.array(thresholds.box_growth, np.float32)
