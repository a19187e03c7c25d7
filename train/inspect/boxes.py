"""What the boxes of a data set are like: counts by class, sizes, shapes, and boxes that look like mistakes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from runtime.coco import CocoDataset, GroundTruth

TINY = 2.0  # px in the image: a side below it is too short to be an object
OUTSIDE = 1.0  # px that a box may reach beyond its image: rounding
ELONGATED = 5.0  # longer side by shorter side
QUANTILES = (0, 10, 50, 90, 100)  # per cent


class ClassCount(NamedTuple):
    """How often a class occurs."""

    name: str
    objects: int
    images: int


class BoxReport(NamedTuple):
    """The boxes of a data set; crowds and regions to ignore only count where it is said."""

    classes: tuple[ClassCount, ...]  # most frequent first
    objects: int
    crowds: int
    empty_images: int  # images without an object
    per_image: dict[str, float]  # quantiles of the objects of an image that has some
    sides: dict[str, float]  # quantiles of √(width · height), px
    aspects: dict[str, float]  # quantiles of width / height
    elongated: int  # boxes of more than `ELONGATED` times the length
    tiny: int  # boxes with a side of less than `TINY` px
    outside: int  # boxes that reach more than `OUTSIDE` px beyond their image
    same_twice: int  # boxes that an image has a second time, of the same class
    two_classes: int  # boxes that an image has a second time, of another class
    examples: dict[str, tuple[str, ...]]  # names of images, by the field that counts them


def box_report(dataset: CocoDataset, truth: GroundTruth, named: int = 3) -> BoxReport:
    """Count the boxes; `named` images are given as examples of each kind of mistake."""
    image_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    is_object = ~dataset.crowd
    labels, images = dataset.labels[is_object], image_of[is_object]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    pairs = np.unique(np.stack([labels, images], axis=1), axis=0)
    in_images = np.bincount(pairs[:, 0], minlength=len(dataset.classes)) if len(pairs) else np.zeros_like(counts)
    rows = [ClassCount(*row) for row in zip(dataset.classes, counts.tolist(), in_images.tolist(), strict=True)]
    per_image = np.bincount(images, minlength=len(dataset))
    sides = dataset.boxes[is_object, 2:] - dataset.boxes[is_object, :2]
    aspects = sides[:, 0] / sides[:, 1] if len(sides) else np.empty(0)
    marks = _marks(dataset, truth)
    return BoxReport(
        classes=tuple(sorted(rows, key=lambda row: -row.objects)),
        objects=len(labels),
        crowds=int(dataset.crowd.sum()),
        empty_images=int((per_image == 0).sum()),
        per_image=_quantiles(per_image[per_image > 0]),
        sides=_quantiles(np.sqrt(sides.prod(axis=1))),
        aspects=_quantiles(aspects),
        elongated=int((np.maximum(aspects, 1 / aspects) > ELONGATED).sum()),
        **{name: len(found) for name, found in marks.items()},
        examples={
            name: tuple(dataset.file_names[int(image)] for image in np.unique(found)[:named])
            for name, found in marks.items()
            if len(found)
        },
    )


def _marks(dataset: CocoDataset, truth: GroundTruth) -> dict[str, np.ndarray]:
    """The images of boxes that look like mistakes, by kind; an image occurs once for each such box."""
    order = np.argsort(dataset.image_ids)
    image = order[np.searchsorted(dataset.image_ids, truth.image_ids[truth.images], sorter=order)]
    x1y1, x2y2 = truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]
    beyond = np.maximum(-x1y1, x2y2 - dataset.sizes_hw[image, ::-1]).max(axis=1, initial=-np.inf)
    same_box = _repeated(np.column_stack([image, truth.boxes]))
    same_all = _repeated(np.column_stack([image, truth.categories, truth.boxes]))
    return {
        "tiny": image[(truth.boxes[:, 2:] < TINY).any(axis=1)],
        "outside": image[beyond > OUTSIDE],
        "same_twice": image[same_all],
        "two_classes": image[same_box & ~same_all],
    }


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Which rows [n, k] an earlier row equals, bool [n]."""
    is_repeated = np.ones(len(rows), bool)
    is_repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return is_repeated


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """The quantiles by name, such as "50 %"; empty without values."""
    if not len(values):
        return {}
    return {f"{q} %": round(float(v), 3) for q, v in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}


def as_json(report: BoxReport) -> dict[str, Any]:
    """The report as JSON has it."""
    return {**report._asdict(), "classes": [row._asdict() for row in report.classes]}
