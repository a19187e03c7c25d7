"""One page of a data set's images with their boxes."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.coco import CocoDataset
from runtime.draw import draw_truth, encode_jpeg
from runtime.images import ImageError

from .files import spread

CELL = 320  # px: side of an image's square
COLUMNS = 6
COUNT = 24  # images
GAP = 4  # px between two
BACKGROUND = 245


def contact_sheet(dataset: CocoDataset, count: int = COUNT) -> bytes:
    """A JPEG of up to `count` images with their boxes: one for each class as far as there is room, others beside.

    Images that can't be read are left out. Raises ImageError where none can be read.
    """
    cells = []
    for index in chosen_images(dataset, count):
        try:
            cells.append(_cell(dataset, index))
        except ImageError:
            continue
    if not cells:
        raise ImageError(f"{dataset.root}: none of the chosen images can be read, so there is nothing to draw")
    rows = [cells[first : first + COLUMNS] for first in range(0, len(cells), COLUMNS)]
    heights = [GAP + max(cell.shape[0] for cell in row) for row in rows]
    page = np.full((sum(heights) + GAP, len(rows[0]) * (CELL + GAP) + GAP, 3), BACKGROUND, np.uint8)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for number, cell in enumerate(row):
            left = GAP + number * (CELL + GAP)
            page[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        top += height
    return encode_jpeg(page)


def chosen_images(dataset: CocoDataset, count: int) -> list[int]:
    """Indices of images: the first of each class, rarest class first, then others evenly spread over the set."""
    image_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    chosen: dict[int, None] = {}
    frequencies = np.bincount(dataset.labels, minlength=len(dataset.classes))
    for label in np.argsort(frequencies, kind="stable").tolist():
        if frequencies[label] and len(chosen) < count:
            chosen[int(image_of[np.argmax(dataset.labels == label)])] = None
    with_objects = np.flatnonzero(np.diff(dataset.offsets))
    for pool in (with_objects, np.arange(len(dataset))):
        for index in spread(pool, count).tolist():
            if len(chosen) < count:
                chosen[index] = None
    return sorted(chosen)


def _cell(dataset: CocoDataset, index: int) -> np.ndarray:
    image = dataset.image(index)
    scale = min(1.0, CELL / max(image.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    boxes, labels, _ = dataset.annotations(index)
    return draw_truth(small, boxes * np.float32(scale), labels, dataset.classes)
