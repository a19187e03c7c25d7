"""Multi-scale testing: an image at several sizes, mirrored too if asked for, and what is found merged.

It needs a backend only, and one whose graph takes the canvases of these sizes. One size, not mirrored, is the plain
way itself. The merging: the candidates of all views in the image's own pixels, and class-wise NMS over their union.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .backends import Backend
from .detections import Detections, RawOutputs, apply_nms, covered_areas, empty_detections
from .detector import Detector, DetectorProtocol
from .errors import UserError
from .images import Decoded
from .images.preprocess import as_decoded
from .manifest import Manifest, Preprocess, Thresholds
from .nms import iou_matrix
from .stopwatch import Stopwatch


class _Resized:
    """A backend whose images are resized otherwise than its manifest says."""

    def __init__(self, backend: Backend, short_side: int) -> None:
        pre = backend.manifest.preprocess
        long_side = max(1, round(pre.long_side * short_side / pre.short_side))
        self._backend = backend
        self.manifest: Manifest = dataclasses.replace(
            backend.manifest, preprocess=dataclasses.replace(pre, short_side=short_side, long_side=long_side)
        )
        self.description = backend.description

    @property
    def concurrency(self) -> int:
        return self._backend.concurrency

    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        return self._backend.infer(images, image_sizes, all_candidates=all_candidates, stopwatch=stopwatch)

    def close(self) -> None:
        """The backend belongs to the detector that was given."""


class _View(NamedTuple):
    detector: Detector
    mirrored: bool


class MultiScaleDetector:
    """Detects at several sizes with the backend of `detector`, which stays open and usable.

    `short_sides` px, of images whose longer side is limited in proportion; `mirrored` adds each view's mirror image.
    With `vote`, a detection's box becomes the mean of the boxes that overlap it (IoU above NMS' threshold), weighted by
    score and overlap. Raises UserError where sizes are missing or not positive.
    """

    def __init__(
        self, detector: Detector, short_sides: Sequence[int], mirrored: bool = False, vote: bool = False
    ) -> None:
        if not short_sides or min(short_sides) < 1 or len(set(short_sides)) != len(short_sides):
            given = " ".join(map(str, short_sides)) or "none"
            raise UserError(f"the sizes to detect at are {given}; expected one or more different ones of at least 1")
        self.manifest = detector.manifest
        sized = [Detector(_Resized(detector.backend, short_side)) for short_side in short_sides]
        self._views = [_View(d, mirror) for d in sized for mirror in ((False, True) if mirrored else (False,))]
        self._vote = vote
        self._is_plain = len(self._views) == 1 and not vote
        self._largest = sized[int(np.argmax(short_sides))]

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """The largest canvas that an image of this size is laid on. Raises BackendError where the graph takes less."""
        return self._largest.canvas_hw(image_hw)

    @property
    def concurrency(self) -> int:
        return self._largest.concurrency

    @property
    def load_preprocess(self) -> Preprocess | None:
        return self._views[0].detector.load_preprocess if self._is_plain else None  # the views share all of its pixels

    def prepare(self, image: np.ndarray | Decoded) -> np.ndarray | Decoded:
        """The image itself: what is made of it fills more memory than it."""
        return image

    def detect_prepared(
        self, decoded: Sequence[np.ndarray | Decoded], stopwatch: Stopwatch | None = None
    ) -> list[Detections]:
        """As `detect`; all of it counts as the network's time."""
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.measure("network"):
            return self.detect(decoded)

    def detect(self, images: Sequence[np.ndarray | Decoded]) -> list[Detections]:
        """As `Detector.detect`."""
        if self._is_plain:
            return self._views[0].detector.detect(images)
        decoded = [as_decoded(image) for image in images]
        found: list[list[Detections]] = [[] for _ in decoded]
        for detector, mirrored in self._views:
            # A mirrored view of the array would do, were it not that some backends want it in one piece.
            seen = [Decoded(np.ascontiguousarray(p.pixels[:, ::-1]), p.size_hw) if mirrored else p for p in decoded]
            for index, candidates in enumerate(detector.detect_candidates(seen)):
                width = decoded[index].size_hw[1]
                found[index].append(_mirror(candidates, width) if mirrored else candidates)
        return [merge_views(parts, self.manifest.thresholds, self._vote) for parts in found]


@dataclass(frozen=True)
class TtaSettings:
    """Multi-scale testing as it was asked for. By default an image is seen once, as the manifest says."""

    scales: tuple[int, ...] = ()  # shorter sides in px; empty: the manifest's
    flip: bool = False  # see mirrored images too
    vote: bool = False  # average the boxes that overlap


NO_TTA = TtaSettings()


def add_tta_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options that `parse_tta` reads."""
    group = parser.add_argument_group("multi-scale testing")
    group.add_argument("--scales", type=int, nargs="+", metavar="PX", help="detect at these shorter sides, and merge")
    group.add_argument("--flip", action="store_true", help="detect on mirrored images too, and merge")
    group.add_argument("--vote", action="store_true", help="average the boxes that overlap a detection's box")


def parse_tta(options: argparse.Namespace) -> TtaSettings:
    """The settings that a command line with `add_tta_arguments` asks for."""
    return TtaSettings(tuple(options.scales or ()), options.flip, options.vote)


def with_tta(detector: Detector, settings: TtaSettings) -> DetectorProtocol[Any]:
    """The detector as the settings ask for it: itself, or a MultiScaleDetector on its backend."""
    if settings == NO_TTA:
        return detector
    short_sides = settings.scales or (detector.manifest.preprocess.short_side,)
    return MultiScaleDetector(detector, short_sides, settings.flip, settings.vote)


def merge_views(parts: Sequence[Detections], thresholds: Thresholds, vote: bool = False) -> Detections:
    """Class-wise NMS over the union of candidates of one image; of equal scores the earlier part's comes first."""
    if not parts:
        return empty_detections()
    union = Detections(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.classes for part in parts]),
    )
    kept = apply_nms(union, thresholds)
    return dataclasses.replace(kept, boxes=_voted(kept, union, thresholds)) if vote else kept


def _voted(kept: Detections, union: Detections, thresholds: Thresholds) -> np.ndarray:
    """Boxes float32 [n, 4]: for each kept detection the weighted mean of those of its class that overlap it."""
    overlap = iou_matrix(covered_areas(kept.boxes, thresholds), covered_areas(union.boxes, thresholds))  # [n, m]
    votes = (overlap > thresholds.nms_iou) & (kept.classes[:, None] == union.classes[None])
    weights = np.where(votes, overlap * union.scores, 0.0)
    total = weights.sum(axis=1, keepdims=True)
    # A box without an area overlaps nothing, not even itself.
    means = np.divide(weights @ union.boxes, total, out=kept.boxes.astype(np.float64), where=total > 0)
    return means.astype(np.float32)


def _mirror(detections: Detections, width: int) -> Detections:
    boxes = detections.boxes.copy()
    boxes[:, [0, 2]] = width - detections.boxes[:, [2, 0]]
    return dataclasses.replace(detections, boxes=boxes)
