"""Decodes untrusted image files: the size is checked before decoding, and truncated or damaged files are refused.

The file's content decides its format, not its suffix: JPEG (`jpeg`), PNG, and the formats of `other_formats`. PNG files
are decoded by OpenCV, which by itself would also return the upper half of a truncated file, print to stderr, or fill
the memory for a small file that claims to be huge. The EXIF orientation is applied to every format that has one.

`decode` gives all pixels of an image; `decode_image` can decode a JPEG at a fraction of its size.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
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

MAX_PIXELS = 64_000_000  # 192 MB once decoded
MAX_FILE_BYTES = 1 << 30
# Of images in a folder; the format itself is read from the file's bytes.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
ADVICE = "copy or download it again"

_PNG_SIGNATURE_BYTES = 8
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
    data = source if isinstance(source, bytes) else _read(Path(source))
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
            pixels = _decode_png(data)
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


def _decode_png(data: bytes) -> np.ndarray:
    _check_png(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode it ({error.err}); save it again as JPEG or PNG") from error
    if pixels is None:
        raise ValueError("damaged, or of a kind that OpenCV cannot decode; save it again as JPEG or PNG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _check_png(data: bytes) -> None:
    """Raise ValueError if the data ends before the end marker, or if a checksum is wrong."""
    position, kind = _PNG_SIGNATURE_BYTES, b""
    while kind != b"IEND":
        try:
            length, kind = struct.unpack_from(">I4s", data, position)
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        except struct.error as error:
            raise ValueError("truncated, the file ends early") from error
        is_critical = kind[:1].isupper()
        if is_critical and zlib.crc32(memoryview(data)[position + 4 : position + 8 + length]) != checksum:
            raise ValueError(f"damaged, the checksum of its {kind.decode('latin-1')} part is wrong")
        position += 12 + length


def _read(path: Path) -> bytes:
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: {size / 1e9:.1f} GB, images of up to {MAX_FILE_BYTES / 1e9:.1f} GB are read")
        return file.read()
