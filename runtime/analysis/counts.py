"""How many objects a data set has: by class, by COCO's sizes, and by the shape of their boxes.

K classes; three sizes; seven ranges of width / height.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..coco.ground_truth import GroundTruth
from ..detection_filter import KEEP_ALL, DetectionFilter
from .selection import select

SIZES = ("small", "medium", "large")
_SIZE_EDGES = np.array([32.0**2, 96.0**2])  # px²; an object on an edge belongs to the larger size
ASPECTS = ("below 1:4", "1:4 to 1:2", "1:2 to 3:4", "3:4 to 4:3", "4:3 to 2:1", "2:1 to 4:1", "4:1 and above")
_ASPECT_EDGES = np.array([1 / 4, 1 / 2, 3 / 4, 4 / 3, 2, 4])  # width / height; a box on an edge is of the wider range


@dataclass(frozen=True)
class Counts:
    """Objects by class. Crowds and regions to ignore are counted apart."""

    classes: tuple[str, ...]  # [K]
    images: int
    images_of_class: np.ndarray  # int64 [K] images with an object of the class
    objects: np.ndarray  # int64 [K]
    sizes: np.ndarray  # int64 [K, 3] by SIZES, of the annotated areas
    aspects: np.ndarray  # int64 [K, 7] by ASPECTS; boxes without a width or a height are in none
    regions: np.ndarray  # int64 [K] crowds and regions to ignore

    def of_classes(self, classes: Sequence[str]) -> Counts:
        """The counts in the order of other classes, matched by name; 0 for a class that this data set lacks.

        Puts a training set beside an evaluated one. Of classes with one name, the first counts.
        """
        places = {name: place for place, name in reversed(list(enumerate(self.classes)))}
        rows = np.array([places.get(name, -1) for name in classes], np.int64)
        arranged = {}
        for name in ("images_of_class", "objects", "sizes", "aspects", "regions"):
            values = getattr(self, name)
            arranged[name] = np.concatenate([values, np.zeros_like(values[:1], shape=(1, *values.shape[1:]))])[rows]
        return Counts(tuple(classes), self.images, **arranged)


def count_objects(
    truth: GroundTruth,
    image_ids: Sequence[int] | np.ndarray | None = None,
    kept: DetectionFilter = KEEP_ALL,
) -> Counts:
    """Count the objects of all images or of those of `image_ids`; of the filter's categories, others have 0."""
    selection = select(truth, image_ids, kept)
    rows, region = selection.rows, selection.regions
    classes = len(truth.classes)
    regions = np.bincount(truth.categories[rows[region]], minlength=classes)
    rows = rows[~region]
    labels, boxes = truth.categories[rows], truth.boxes[rows]
    has_shape = (boxes[:, 2:] > 0).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = boxes[:, 2] / boxes[:, 3]
    return Counts(
        classes=truth.classes,
        images=int(selection.images.sum()),
        images_of_class=np.bincount(
            np.unique(np.stack([truth.images[rows], labels]), axis=1)[1].astype(np.int64), minlength=classes
        ),
        objects=np.bincount(labels, minlength=classes),
        sizes=_histogram(labels, truth.areas[rows], _SIZE_EDGES, classes),
        aspects=_histogram(labels[has_shape], ratios[has_shape], _ASPECT_EDGES, classes),
        regions=regions,
    )


def _histogram(labels: np.ndarray, values: np.ndarray, edges: np.ndarray, classes: int) -> np.ndarray:
    """How many values of each class lie between the edges, int64 [classes, edges + 1]."""
    columns = len(edges) + 1
    cells = labels * columns + np.searchsorted(edges, values, side="right")
    return np.bincount(cells, minlength=classes * columns).reshape(classes, columns)
