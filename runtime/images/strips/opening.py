"""Finds out whether an image file can be read in strips."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ..decoding import ADVICE
from ..headers import Header, ImageError, opened
from .png import png_strips
from .rows import bmp_strips, pnm_strips
from .tiff import tiff_strips

# A reader takes the open file, its header and the most rows that a strip may have. It gives strips uint8 [n, w, 3] RGB
# from the top, or None at once where the file is of a kind that it cannot read so. It raises ValueError, struct.error.
Reader = Callable[[BinaryIO, Header, int], "Iterator[np.ndarray] | None"]
STREAMED: dict[str, Reader] = {"PNG": png_strips, "TIFF": tiff_strips, "BMP": bmp_strips, "PNM": pnm_strips}
STRIP_PIXELS = 4_000_000  # of a strip, unless the limit is lower


@dataclass(frozen=True)
class StripImage:
    """An image file that is read in strips."""

    source: str | os.PathLike[str] | bytes
    header: Header
    max_pixels: int  # of a strip

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.header.stored_hw

    def strips(self) -> Iterator[np.ndarray]:
        """The image's rows from the top, uint8 [n, w, 3] RGB. Raises ImageError, also for less rows than there are."""
        name = _name(self.source)
        height, width = self.size_hw
        rows = 0
        with _open(self.source) as file:
            try:
                found = STREAMED[self.header.format](file, self.header, _most_rows(width, self.max_pixels))
                if found is None:
                    raise ValueError("the file changed while it was read")
                for strip in found:
                    rows += len(strip)
                    if strip.shape[1] != width or rows > height:
                        raise ValueError("damaged, its pixels are not of the size that its header says")
                    yield strip
                if rows != height:
                    raise ValueError("truncated, the file ends early")
            except (struct.error, IndexError) as error:
                raise ImageError(f"{name}: truncated, the file ends early; {ADVICE}") from error
            except (ValueError, OverflowError, MemoryError) as error:
                raise ImageError(f"{name}: {error}; {ADVICE}") from error


def open_strips(source: str | os.PathLike[str] | bytes, header: Header, max_pixels: int) -> StripImage | None:
    """The image for reading in strips of at most `max_pixels`; None where only the whole file can be decoded.

    Read in strips are PNG files that are not interlaced, TIFF files in strips or tiles whose planes are not separate,
    BMP files without compression and binary PNM files, if they are stored upright.
    """
    if header.format not in STREAMED or header.orientation != 1 or header.stored_hw[1] > max_pixels:
        return None
    with _open(source) as file:
        try:
            reader = STREAMED[header.format](file, header, _most_rows(header.stored_hw[1], max_pixels))
        except (struct.error, IndexError, ValueError, OverflowError):
            return None  # decoding the whole file says what is wrong with it
    return None if reader is None else StripImage(source, header, max_pixels)


def _most_rows(width: int, max_pixels: int) -> int:
    return max(1, min(STRIP_PIXELS, max_pixels) // width)


def _open(source: str | os.PathLike[str] | bytes) -> AbstractContextManager[BinaryIO]:
    return nullcontext(io.BytesIO(source)) if isinstance(source, bytes) else opened(source)


def _name(source: str | os.PathLike[str] | bytes) -> str:
    return "image data" if isinstance(source, bytes) else os.fspath(source)
