"""Test-time augmentation (TTA): detect on an image at several sizes and mirrored, and merge the detections.

The backend's graph must take the canvases of all sizes. With one size and no mirroring, detection is as usual. To
merge, the candidates of all views are moved to image pixels, and class-wise NMS runs over their union.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .backends import Backend
from .bounds import Side, argument
from .detections import Detections, RawOutputs, apply_nms, covered_areas, empty_detections
from .detector import Detector
from .detector_protocol import DetectorProtocol
from .errors import UserError
from .images import Decoded
from .images.preprocess import as_decoded
from .manifest import Manifest, Preprocess, Thresholds
from .nms import iou_matrix
from .stopwatch import Stopwatch
from .tiling.detector import TiledDetector, tiled
from .tiling.settings import Tiles, add_tile_arguments, parse_tiles


class _Resized:
    """A backend whose images are resized to another size than its manifest says."""

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

    `short_sides` are the shorter sides in px; the limit of the longer side scales in proportion. `mirrored` adds the
    mirror image of each view. With `vote`, the box of a detection becomes the mean of the boxes that overlap it (IoU
    above the threshold of NMS), weighted by score and overlap. Raises UserError if no size is given, a size is given
    twice, or one is below 1.
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
        """The largest canvas among the views. Raises BackendError if the graph does not take it."""
        return self._largest.canvas_hw(image_hw)

    @property
    def concurrency(self) -> int:
        """How many batches the backend gains from running at once."""
        return self._largest.concurrency

    @property
    def load_preprocess(self) -> Preprocess | None:
        """None if there are several views: they share all pixels of the image."""
        return self._views[0].detector.load_preprocess if self._is_plain else None

    @property
    def finest_preprocess(self) -> Preprocess:
        """Preprocessing of the largest view."""
        return self._largest.manifest.preprocess

    def prepare(self, image: np.ndarray | Decoded) -> np.ndarray | Decoded:
        """The image itself: its views would fill more memory."""
        return image

    def detect_prepared(
        self, decoded: Sequence[np.ndarray | Decoded], stopwatch: Stopwatch | None = None
    ) -> list[Detections]:
        """As `detect`; all time counts as the network's time."""
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.measure("network"):
            return self.detect(decoded)

    def detect(self, images: Sequence[np.ndarray | Decoded]) -> list[Detections]:
        """Merged detections of each image; images are as for `Detector.detect`."""
        if self._is_plain:
            return self._views[0].detector.detect(images)
        decoded = [as_decoded(self._largest.receive(image, index)) for index, image in enumerate(images)]
        found: list[list[Detections]] = [[] for _ in decoded]
        for detector, mirrored in self._views:
            # Some backends need contiguous arrays, so a mirrored NumPy view is not enough.
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
    tiles: Tiles | None = None  # cut larger images into tiles, each of which is seen so; None: no tiles

    def __str__(self) -> str:
        """The settings in words, such as "shorter sides 640 and 800, mirrored, tiles of 512 px"."""
        words = []
        if self.scales:
            words.append(f"shorter side{'s' * (len(self.scales) > 1)} {' and '.join(map(str, self.scales))}")
        words += ["mirrored"] * self.flip + ["boxes averaged"] * self.vote
        if self.tiles is not None:
            words.append(str(self.tiles))
        return ", ".join(words) or "as the manifest says"


NO_TTA = TtaSettings()


def add_tta_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options that `parse_tta` reads."""
    group = parser.add_argument_group("multi-scale testing")
    group.add_argument(
        "--scales", type=argument(Side), nargs="+", metavar="PX", help="detect at these shorter sides, and merge"
    )
    group.add_argument("--flip", action="store_true", help="detect on mirrored images too, and merge")
    group.add_argument("--vote", action="store_true", help="average the boxes that overlap a detection's box")
    add_tile_arguments(parser)


def parse_tta(options: argparse.Namespace) -> TtaSettings:
    """The settings that a command line with `add_tta_arguments` and --batch asks for. Raises UserError."""
    return TtaSettings(tuple(options.scales or ()), options.flip, options.vote, parse_tiles(options))


def with_tta(detector: Detector, settings: TtaSettings) -> DetectorProtocol[Any]:
    """The detector as the settings ask for it: itself, or one on its backend that sees several sizes, or tiles."""
    if dataclasses.replace(settings, tiles=None) == NO_TTA:
        return tiled(detector, settings.tiles)
    short_sides = settings.scales or (detector.manifest.preprocess.short_side,)
    seeing = MultiScaleDetector(detector, short_sides, settings.flip, settings.vote)
    return seeing if settings.tiles is None else TiledDetector(detector, settings.tiles, seeing)


def merge_views(parts: Sequence[Detections], thresholds: Thresholds, vote: bool = False) -> Detections:
    """Class-wise NMS over the union of one image's candidates; among equal scores the earlier part comes first."""
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
    """Boxes float32 [n, 4]: for each kept detection, the weighted mean of the boxes of its class that overlap it."""
    overlap = iou_matrix(covered_areas(kept.boxes, thresholds), covered_areas(union.boxes, thresholds))  # [n, m]
    votes = (overlap > thresholds.nms_iou) & (kept.classes[:, None] == union.classes[None])
    weights = np.where(votes, overlap * union.scores, 0.0)
    total = weights.sum(axis=1, keepdims=True)
    # A box without area overlaps nothing, not even itself.
    means = np.divide(weights @ union.boxes, total, out=kept.boxes.astype(np.float64), where=total > 0)
    return means.astype(np.float32)


def _mirror(detections: Detections, width: int) -> Detections:
    boxes = detections.boxes.copy()
    boxes[:, [0, 2]] = width - detections.boxes[:, [2, 0]]
    return dataclasses.replace(detections, boxes=boxes)
