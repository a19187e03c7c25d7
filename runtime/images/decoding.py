"""Decodes untrusted image files: the size is checked before decoding, and truncated or damaged files are refused.

The file's content decides its format, not its suffix: JPEG (`jpeg`), PNG (`png`), and the formats of `other_formats`.
A decoder by itself would also fill the memory for a small file that claims to be huge. The EXIF orientation is applied
to every format that has one.

`decode` gives all pixels of an image; `decode_image` can decode a JPEG at a fraction of its size.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .headers import Header, ImageError, opened, read_header
from .jpeg import check_jpeg, decode_jpeg
from .other_formats import decode_other
from .png import decode_png

MAX_PIXELS = 64_000_000  # 192 MB once decoded
MAX_FILE_BYTES = 1 << 30
# Of images in a folder; the format itself is read from the file's bytes.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
ADVICE = "copy or download it again"

# How a stored image becomes upright, by its EXIF orientation.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


@dataclass(frozen=True)
class Decoded:
    """An image's pixels, at full size or at a half, quarter or eighth of it."""

    pixels: np.ndarray  # uint8 [h, w, 3] RGB
    size_hw: tuple[int, int]  # the full size, in which boxes are measured; a multiple of the pixels' size


def whole(pixels: np.ndarray) -> Decoded:
    """An image whose pixels have its full size."""
    return Decoded(pixels, (pixels.shape[0], pixels.shape[1]))


def decode(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image (a path, or the file's bytes) as uint8 [h, w, 3] RGB, EXIF orientation applied.

    JPEG, PNG, WebP, BMP, TIFF, GIF and PNM files are read; of several images in a file, the first. Grey, palette,
    16-bit, CMYK and transparent images are converted; transparency is dropped. Raises ImageError if the image is
    missing, empty, of another format, truncated, damaged, or has more than `max_pixels`.
    """
    return decode_image(source, max_pixels=max_pixels).pixels


def decode_image(
    source: str | os.PathLike[str] | bytes,
    divisor: Callable[[tuple[int, int]], int] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """As `decode`, but a JPEG is decoded at 1/N of its size, where N is `divisor` of its (height, width).

    Height and width are those of the stored image, before its orientation is applied. `divisor` returns 1, 2, 4 or 8,
    and must divide both sides. The JPEG decoder averages pixels and skips most of its work.
    """
    name, data, header = _checked(source, max_pixels)
    return _decoded(name, data, header, divisor)


def decode_by(
    decoder: Callable[[bytes], Any | None], source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS
) -> Any:
    """As `decode_image` by another decoder: an array of its library, uint8 [h, w, 3] RGB, where that lies.

    It gets JPEG files whose compressed data was checked. Other formats, and files for which it returns None, are
    decoded to `Decoded` as `decode_image` does.
    """
    name, data, header = _checked(source, max_pixels)
    if header.format == "JPEG":
        with _errors_of(name):
            data = check_jpeg(data, header)
        if (found := decoder(data)) is not None:
            return found
    return _decoded(name, data, header)


def _checked(source: str | os.PathLike[str] | bytes, max_pixels: int) -> tuple[str, bytes, Header]:
    """A name for messages, the file's bytes, and what its header says. Raises ImageError."""
    name = "image data" if isinstance(source, bytes) else os.fspath(source)
    data = source if isinstance(source, bytes) else read_file(Path(source))
    header = read_header(io.BytesIO(data), name)
    height, width = header.stored_hw
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width}×{height} is {height * width / 1e6:.1f} megapixels, the limit is {max_pixels / 1e6:g}; "
            "scale it down, or raise --max-megapixels (in training --data.max-megapixels) if you trust the file"
        )
    return name, data, header


def _decoded(
    name: str, data: bytes, header: Header, divisor: Callable[[tuple[int, int]], int] | None = None
) -> Decoded:
    by = 1
    with _errors_of(name):
        if header.format == "JPEG":
            by = divisor(header.stored_hw) if divisor is not None else 1
            pixels = decode_jpeg(data, header, by)
        elif header.format == "PNG":
            pixels = decode_png(data, header)
        else:
            pixels = decode_other(data, header)
    if header.orientation in _TURNS and header.format != "TIFF":  # Pillow turns TIFF files itself
        pixels = _TURNS[header.orientation](pixels)
    return Decoded(pixels, (by * pixels.shape[0], by * pixels.shape[1]))


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Turns a ValueError, which says what is wrong with a file, into an ImageError that names the file."""
    try:
        yield
    except ImageError:
        raise
    except ValueError as error:
        advice = "" if "convert it" in str(error) or "save it" in str(error) else f"; {ADVICE}"
        raise ImageError(f"{name}: {error}{advice}") from error


def read_file(path: Path) -> bytes:
    """The bytes of an image file. Raises ImageError, also for one that is larger than any image."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: {size / 1e9:.1f} GB, images of up to {MAX_FILE_BYTES / 1e9:.1f} GB are read")
        return file.read()
