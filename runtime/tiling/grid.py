"""Where the tiles of an image lie."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A rectangle of an image, in whole pixels; the right and the lower side are excluded."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.y2 - self.y1, self.x2 - self.x1


def whole_window(image_hw: tuple[int, int]) -> Window:
    """The window that is the image."""
    return Window(0, 0, image_hw[1], image_hw[0])


def tile_rows(image_hw: tuple[int, int], side: int, overlap: float) -> list[list[Window]]:
    """The tiles of an image, row by row from the top, each row from the left.

    A tile has `side` pixels, or those of the image where that is smaller. Neighbours share the fraction `overlap` of a
    side, rounded to whole pixels, or more: the last tile of a row or column is shifted inwards, so that all tiles have
    one size.
    """
    height, width = image_hw
    across, down = min(side, width), min(side, height)
    return [
        [Window(x, y, x + across, y + down) for x in _starts(width, side, overlap)]
        for y in _starts(height, side, overlap)
    ]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, side - round(side * overlap))
    return [*range(0, length - side, step), length - side]
