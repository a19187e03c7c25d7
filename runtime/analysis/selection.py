"""Which objects and results an analysis counts: those that `runtime.coco.score` counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..coco.format import Problems
from ..coco.ground_truth import GroundTruth
from ..coco.matching import AREAS, inside
from ..coco.results import Results, filter_results, known_results
from ..coco.scoring import Matches
from ..detection_filter import DetectionFilter


class Selection(NamedTuple):
    """Objects of some categories in some images."""

    truth: GroundTruth  # of the filter's categories
    images: np.ndarray  # bool [I], mask of `truth.image_ids`
    objects: GroundTruth  # the annotations that count: in these images, neither crowds nor regions to ignore
    sizes: np.ndarray  # bool [A, 4], which of COCO's areas each of `objects` falls into
    measured: np.ndarray  # bool [K], the categories that have an object

    def known(self, results: Results, kept: DetectionFilter) -> Results:
        """The results that the filter keeps, of known categories. Raises as `runtime.coco.score`."""
        return known_results(filter_results(results, kept), self.truth.image_ids, self.truth.category_ids, Problems())

    def matches(self, results: Results, kept: DetectionFilter, every_class: bool = False) -> Matches:
        """The matches of the results that the filter keeps, of categories that have an object or of every one.

        Raises as `runtime.coco.score`, and WriteError where matches need a temporary file that cannot be written.
        """
        categories = self.measured | every_class
        return Matches(self.truth, self.known(results, kept), self.images, categories)


def select(truth: GroundTruth, image_ids: Sequence[int] | np.ndarray | None, kept: DetectionFilter) -> Selection:
    """The objects that count in all images, or in those of `image_ids`, and that the filter's categories allow."""
    truth = truth.restricted_to(kept.category_ids)
    images = np.isin(truth.image_ids, truth.image_ids if image_ids is None else np.asarray(image_ids, np.int64))
    objects = truth.select(images[truth.images] & ~truth.crowd)
    sizes = inside(objects.areas)
    found = np.zeros((len(truth.category_ids), len(AREAS)), bool)
    np.logical_or.at(found, objects.categories, sizes)
    measured: np.ndarray = np.any(found, axis=1)
    return Selection(truth, images, objects, sizes, measured)
