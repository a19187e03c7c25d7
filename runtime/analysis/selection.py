"""Which images, objects and detections an analysis counts: those that `runtime.coco.score` counts.

Every analysis begins with a `Selection`. One that lets COCO's evaluation match (curves, calibration, intervals) takes
`matches`; one that matches by other rules (errors, confusion, changes) takes `ranking.rank_detections`.

I images, K categories; n annotations of the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.format import Problems
from ..coco.ground_truth import GroundTruth
from ..coco.matching import AREAS, inside
from ..coco.results import Results, filter_results, known_results
from ..coco.scoring import Matches
from ..detection_filter import DetectionFilter


@dataclass(frozen=True)
class Selection:
    """Some images of a ground truth, the categories of a filter, and the annotations of both."""

    kept: DetectionFilter
    truth: GroundTruth  # as given, with all its images and categories
    images: np.ndarray  # bool [I], mask of `truth.image_ids`
    rows: np.ndarray  # int64 [n], rising rows of `truth`: the annotations in these images and of these categories
    # bool [n], those of `rows` that are not to be found: crowds, regions to ignore, and objects whose area COCO's
    # evaluation ignores (negative, or above 10¹⁰ px²).
    regions: np.ndarray
    restricted: GroundTruth  # to the filter's categories, K of them, as COCO's evaluation takes it
    objects: GroundTruth  # the annotations of `restricted` in these images that are neither crowds nor regions
    sizes: np.ndarray  # bool [objects, 4], which of COCO's areas each of `objects` falls into
    measured: np.ndarray  # bool [K], the categories of `restricted` that have an object

    def known(self, results: Results) -> Results:
        """The results that the filter keeps, of known categories. Raises as `runtime.coco.score`."""
        kept = filter_results(results, self.kept)
        return known_results(kept, self.truth.image_ids, self.restricted.category_ids, Problems())

    def matches(self, results: Results, every_class: bool = False) -> Matches:
        """COCO's matches of the results that the filter keeps, of categories that have an object or of every one.

        Raises as `runtime.coco.score`, and WriteError where matches need a temporary file that cannot be written.
        """
        return Matches(self.restricted, self.known(results), self.images, self.measured | every_class)


def select(truth: GroundTruth, image_ids: Sequence[int] | np.ndarray | None, kept: DetectionFilter) -> Selection:
    """What counts in all images, or in those of `image_ids`, of the filter's categories."""
    images = np.isin(truth.image_ids, truth.image_ids if image_ids is None else np.asarray(image_ids, np.int64))
    restricted = truth.restricted_to(kept.category_ids)
    known = np.isin(truth.category_ids, restricted.category_ids)
    rows = np.flatnonzero(images[truth.images] & known[truth.categories])
    objects = restricted.select(images[restricted.images] & ~restricted.crowd)
    sizes = inside(objects.areas)
    found = np.zeros((len(restricted.category_ids), len(AREAS)), bool)
    np.logical_or.at(found, objects.categories, sizes)
    return Selection(
        kept=kept,
        truth=truth,
        images=images,
        rows=rows,
        regions=truth.crowd[rows] | ~in_range(truth.areas[rows]),
        restricted=restricted,
        objects=objects,
        sizes=sizes,
        measured=np.any(found, axis=1),
    )


def in_range(areas: np.ndarray) -> np.ndarray:
    """Which areas COCO's evaluation over all sizes counts, bool [n]."""
    return (areas >= AREAS[0, 0]) & (areas <= AREAS[0, 1])
