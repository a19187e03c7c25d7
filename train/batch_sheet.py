"""Pages of training batches: the network's input with what it is taught about it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from runtime.draw import draw_truth
from runtime.errors import UserError

from .data.loader import TrainBatch

COLUMNS = 4
CELL = 480  # px: longest side of a canvas on the page
GAP = 6  # px
HEADING = 20  # px above an image
HATCH = 8  # px between two lines of a hatching
LONGEST_SIDE = 65_500  # px: what a JPEG file has room for, and a bound on memory
BACKGROUND, INK = 245, (0, 0, 0)


def draw_batch(batch: TrainBatch, step: int, classes: Sequence[str], pad_value: Sequence[int]) -> np.ndarray:
    """A page, uint8 [h, w, 3] RGB, of the images of a batch with boxes and class names.

    Above each image stand its id and size, above all the canvas's size. Regions to ignore are hatched in black.
    Padding, which is the rows and columns of `pad_value` at the bottom and at the right, is hatched in grey.
    """
    cells = [_cell(batch, row, classes, pad_value) for row in range(len(batch.images))]
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // COLUMNS)
    columns = min(COLUMNS, len(cells))
    page = np.full((HEADING + rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), BACKGROUND, np.uint8)
    canvas_h, canvas_w = batch.images.shape[1:3]
    _write(page, f"step {step}, canvas {canvas_w} x {canvas_h}", GAP)
    for number, cell in enumerate(cells):
        top = HEADING + GAP + number // COLUMNS * (height + GAP)
        left = GAP + number % COLUMNS * (width + GAP)
        page[top : top + height, left : left + width] = cell
    return page


def check_size(pages: Sequence[np.ndarray]) -> tuple[int, int]:
    """Width and height of pages below each other. Raises UserError where a side is longer than `LONGEST_SIDE`."""
    width, height = max(page.shape[1] for page in pages), sum(page.shape[0] for page in pages)
    if max(width, height) > LONGEST_SIDE:
        raise UserError(
            f"a drawing of {width} x {height} pixels: expected at most {LONGEST_SIDE} a side; "
            "give fewer --batches, or a smaller --schedule.batch"
        )
    return width, height


def encode_pages(pages: Sequence[np.ndarray], suffix: str) -> bytes:
    """Pages below each other as a file of the format that `suffix` names, such as ".png". Raises as `check_size`."""
    width, height = check_size(pages)
    sheet = np.full((height, width, 3), BACKGROUND, np.uint8)
    top = 0
    for page in pages:
        sheet[top : top + page.shape[0], : page.shape[1]] = page[..., ::-1]
        top += page.shape[0]
    return cv2.imencode(suffix, sheet)[1].tobytes()


def content_hw(canvas: np.ndarray, pad_value: Sequence[int]) -> tuple[int, int]:
    """Height and width without the rows at the bottom and the columns at the right that are all `pad_value`."""
    differs = (canvas != np.array(pad_value, np.uint8)).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (0, 0)


def _cell(batch: TrainBatch, row: int, classes: Sequence[str], pad_value: Sequence[int]) -> np.ndarray:
    canvas = batch.images[row].numpy()
    height, width = content_hw(canvas, pad_value)
    by = min(1.0, CELL / max(canvas.shape[:2]))
    size_wh = max(1, round(canvas.shape[1] * by)), max(1, round(canvas.shape[0] * by))
    image = cv2.resize(canvas, size_wh, interpolation=cv2.INTER_AREA)
    is_padding = np.ones(image.shape[:2], bool)
    is_padding[: round(height * by), : round(width * by)] = False
    _hatch(image, is_padding, (150, 150, 150))
    regions: list[list[int]] = [] if batch.regions is None else (batch.regions[row] * by).round().int().tolist()
    for x1, y1, x2, y2 in regions:
        inside = np.zeros(image.shape[:2], bool)
        inside[y1:y2, x1:x2] = True
        _hatch(image, inside, INK)
    mask = batch.targets.mask[row].numpy()
    boxes, labels = batch.targets.boxes[row].numpy()[mask], batch.targets.labels[row].numpy()[mask]
    image = draw_truth(image, boxes * np.float32(by), labels, classes)
    cell = np.vstack([np.full((HEADING, image.shape[1], 3), BACKGROUND, np.uint8), image])
    _write(cell, f"{batch.image_ids[row]}: {width} x {height}, {len(boxes)} object{'' if len(boxes) == 1 else 's'}", 0)
    return cell


def _hatch(image: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw diagonal lines into the pixels that bool [h, w] names."""
    rows, columns = np.arange(where.shape[0])[:, None], np.arange(where.shape[1])
    image[where & ((rows + columns) % HATCH < 2)] = colour


def _write(image: np.ndarray, text: str, left: int) -> None:
    cv2.putText(image, text, (left, HEADING - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
