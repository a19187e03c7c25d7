"""How many anchors the recipe's own assigner makes positive for each object, at the size that the recipe deploys."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from runtime.coco import CocoDataset
from runtime.images.preprocess import Geometry, boxes_to_canvas, plan

from ..assign import build_assigner
from ..config import Config
from ..geometry.anchors import anchor_grid, pyramid_levels
from .files import spread

EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, math.inf)  # px: √area on the canvas
BATCH = 8  # images that are assigned together


class SizeRow(NamedTuple):
    """The objects of one range of sizes."""

    least: float  # px: √area on the canvas
    below: float
    objects: int
    without: int  # objects that no anchor is positive for: nothing trains the network to find them
    positives: float  # anchors that are positive for an object, on average


class PositivesReport(NamedTuple):
    """What the recipe trains each object with."""

    recipe: str
    sides: tuple[int, int]  # shorter and longer side that images are resized to
    levels: tuple[tuple[int, tuple[tuple[float, float], ...]], ...]  # stride and anchor sizes (width, height) in px
    images: int  # that were assigned, of all with objects
    of_images: int
    rows: tuple[SizeRow, ...]

    @property
    def objects(self) -> int:
        """The objects of the images that were assigned."""
        return sum(row.objects for row in self.rows)

    @property
    def without(self) -> int:
        """The objects without a positive anchor."""
        return sum(row.without for row in self.rows)


def positives_report(dataset: CocoDataset, config: Config, most: int) -> PositivesReport:
    """Assign the anchors of `most` images with objects, evenly spread (0: of all), each on its own canvas.

    Crowds are left out, as in training. Crops and random sizes of the augmentation are not applied.
    """
    crowds = np.concatenate([[0], np.cumsum(~dataset.crowd)])
    with_objects = np.flatnonzero(np.diff(crowds[dataset.offsets]))
    chosen = spread(with_objects, most or len(with_objects))
    by_canvas: dict[tuple[int, int], list[tuple[int, Geometry]]] = {}
    for index in chosen.tolist():
        geometry = plan(dataset.size_hw(index), config.preprocess)
        by_canvas.setdefault(geometry.canvas_hw, []).append((index, geometry))
    sizes, counts = [np.empty(0)], [np.empty(0, np.int64)]
    for canvas_hw, images in by_canvas.items():
        for first in range(0, len(images), BATCH):
            boxes = [_on_canvas(dataset, index, geometry) for index, geometry in images[first : first + BATCH]]
            counts += positives_of(boxes, canvas_hw, config)
            sizes += [np.sqrt((b[:, 2:] - b[:, :2]).prod(axis=1)) for b in boxes]
    levels = pyramid_levels((256, 256), config.model.pyramid.levels, config.model.anchors)
    return PositivesReport(
        recipe=config.recipe,
        sides=(config.preprocess.short_side, config.preprocess.long_side),
        levels=tuple((level.stride, level.sides) for level in levels),
        images=len(chosen),
        of_images=len(with_objects),
        rows=_rows(np.concatenate(sizes), np.concatenate(counts)),
    )


def positives_of(boxes: list[np.ndarray], canvas_hw: tuple[int, int], config: Config) -> list[np.ndarray]:
    """The number of positive anchors of each box of images on a canvas: int64 [n] for boxes [n, 4] xyxy canvas px."""
    levels = pyramid_levels(canvas_hw, config.model.pyramid.levels, config.model.anchors)
    most = max(1, *(len(found) for found in boxes))
    padded, mask = torch.zeros(len(boxes), most, 4), torch.zeros(len(boxes), most, dtype=torch.bool)
    for row, found in enumerate(boxes):
        padded[row, : len(found)], mask[row, : len(found)] = torch.from_numpy(found), True
    matched = build_assigner(config.model.assignment)(padded, mask, levels, grid=anchor_grid(levels)).matched
    return [
        torch.bincount(of_image[of_image >= 0], minlength=len(found))[: len(found)].numpy()
        for of_image, found in zip(matched, boxes, strict=True)
    ]


def _on_canvas(dataset: CocoDataset, index: int, geometry: Geometry) -> np.ndarray:
    boxes, _, crowd = dataset.annotations(index)
    return boxes_to_canvas(boxes[~crowd], geometry)


def _rows(sizes: np.ndarray, counts: np.ndarray) -> tuple[SizeRow, ...]:
    rows = []
    for least, below in pairwise(EDGES):
        inside = (sizes >= least) & (sizes < below)
        if inside.any():
            found = counts[inside]
            rows.append(SizeRow(least, below, len(found), int((found == 0).sum()), round(float(found.mean()), 2)))
    return tuple(rows)
