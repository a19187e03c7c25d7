"""Ground truth as scoring needs it: the annotations of a COCO file, in sorted arrays.

I images, A annotations, K categories.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .format import Problems, categories, normalised, read_coco_json


@dataclass(frozen=True)
class GroundTruth:
    """Annotations sorted by image and category; those of an image and category keep the file's order."""

    image_ids: np.ndarray  # int64 [I], rising
    category_ids: np.ndarray  # int64 [K], rising
    classes: tuple[str, ...]  # [K] names
    images: np.ndarray  # int64 [A] rows of `image_ids`
    categories: np.ndarray  # int64 [A] rows of `category_ids`
    boxes: np.ndarray  # float64 [A, 4] x, y, width, height as annotated
    areas: np.ndarray  # float64 [A] px²: the object's own where the file has it, else the box's
    crowd: np.ndarray  # bool [A] crowds, and regions to ignore
    annotated: bool = True  # false for a test set, whose file has no annotations and which cannot be scored
    left_out: int = 0  # annotations without a box, or of no image or category of the file

    def select(self, rows: np.ndarray | slice) -> GroundTruth:
        """Only the annotations that `rows` (indices, a mask or a slice) names, of the same images and categories."""
        fields = ("images", "categories", "boxes", "areas", "crowd")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in fields})

    def restricted_to(self, category_ids: Sequence[int] | None) -> GroundTruth:
        """Only these categories and their annotations, as pycocotools' `catIds`; None keeps all."""
        if category_ids is None:
            return self
        kept = np.flatnonzero(np.isin(self.category_ids, category_ids))
        found = self.select(np.isin(self.categories, kept))
        return dataclasses.replace(
            found,
            category_ids=self.category_ids[kept],
            classes=tuple(self.classes[row] for row in kept),
            categories=np.searchsorted(kept, found.categories),
        )


def load_ground_truth(path: str | os.PathLike[str]) -> GroundTruth:
    """The ground truth in a COCO annotation file. Raises CocoError."""
    return parse_ground_truth(read_coco_json(Path(path)))


def parse_ground_truth(content: dict[str, Any]) -> GroundTruth:
    """The annotations of a parsed annotation file that are of its images and categories.

    Boxes are not clipped to the image, and those of zero or negative size stay: nothing can be matched with them, so
    they count as missed, as in pycocotools. An annotation without an area has its box's; 0 where the box has no size.
    A region to ignore ("ignore": 1) is scored as a crowd is: any number of detections may lie in it, each by the part
    of its own area, and neither they nor the region count.
    """
    content = normalised(content, "annotations")
    image_ids = np.unique(np.array([image["id"] for image in content["images"]], np.int64))
    category_ids, classes = categories(content, Problems())
    annotations = content["annotations"]
    rows = np.flatnonzero(annotations.known(image_ids, category_ids))
    images = np.searchsorted(image_ids, annotations.image_ids[rows])
    labels = np.searchsorted(category_ids, annotations.category_ids[rows])
    order = np.lexsort((labels, images))  # stable
    rows = rows[order]
    boxes, areas = annotations.boxes[rows], annotations.areas[rows]
    return GroundTruth(
        image_ids=image_ids,
        category_ids=np.array(category_ids, np.int64),
        classes=classes,
        images=images[order],
        categories=labels[order],
        boxes=boxes,
        areas=np.where(np.isnan(areas), boxes[:, 2:].clip(min=0).prod(axis=1), areas),
        crowd=(annotations.crowd | annotations.ignore)[rows],
        annotated=content["annotated"],
        left_out=len(annotations.others) + len(annotations.ids) - len(rows),
    )
