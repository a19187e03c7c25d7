"""What the deployed graph returns, and what is made of it.

B images, K candidates, D the graph's number of detection rows (100).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .manifest import Thresholds
from .nms import nms


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best score first."""

    boxes: np.ndarray  # float32 [n, 4] xyxy
    scores: np.ndarray  # float32 [n]
    classes: np.ndarray  # int32 [n], 0-based

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class RawOutputs:
    """The deployed graph's outputs, under their names. Candidates may be left out where `nms_exact` is 1."""

    num_detections: np.ndarray  # int32 [B, 1] how many rows are valid
    detection_boxes: np.ndarray  # float32 [B, D, 4] xyxy in canvas pixels, best score first
    detection_scores: np.ndarray  # float32 [B, D]
    detection_classes: np.ndarray  # int32 [B, D]
    nms_exact: np.ndarray  # int32 [B, 1] 0: the rows are not what greedy NMS gives
    candidate_boxes: np.ndarray  # float32 [B, K, 4]
    candidate_scores: np.ndarray  # float32 [B, K], 0 in unused rows
    candidate_classes: np.ndarray  # int32 [B, K], −1 in unused rows


def first_images(raw: RawOutputs, count: int) -> RawOutputs:
    """Of the first `count` images."""
    return RawOutputs(*(getattr(raw, field.name)[:count] for field in fields(RawOutputs)))


def concatenate_outputs(parts: Sequence[RawOutputs]) -> RawOutputs:
    """Outputs of one graph on one canvas size, image after image."""
    return RawOutputs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(RawOutputs)))


def empty_detections() -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def select(detections: Detections, rows: np.ndarray) -> Detections:
    """The detections that `rows` (indices or a mask) names."""
    return Detections(detections.boxes[rows], detections.scores[rows], detections.classes[rows])


def postprocess(raw: RawOutputs, thresholds: Thresholds) -> list[Detections]:
    """Detections per image, in canvas pixels: the graph's rows, or NMS of the candidates where these are not exact.

    The graph's score threshold is one on the class probability and has been applied to the candidates already; the
    scores here are final ones (√(class · centerness)) and may lie below it.
    """
    return [
        _rows(raw, index) if raw.nms_exact[index, 0] else apply_nms(_candidates(raw, index), thresholds)
        for index in range(len(raw.num_detections))
    ]


def nms_candidates(raw: RawOutputs) -> list[Detections]:
    """The candidates of each image, in canvas pixels and in no particular order: NMS' input."""
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
    """What class-wise greedy NMS keeps of one image's candidates, best score first."""
    boxes = covered_areas(found.boxes, thresholds)
    return select(found, nms(boxes, found.scores, found.classes, thresholds.nms_iou, thresholds.detections))


def covered_areas(boxes: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """The areas that boxes [n, 4] cover, as xyxy: the boxes themselves, but for the legacy convention."""
    return boxes if thresholds.box_growth is None else boxes + np.array(thresholds.box_growth, np.float32)
