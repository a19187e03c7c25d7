"""Decodes untrusted image files: the size is checked before decoding, and truncated files are refused.

OpenCV does the decoding and turns the image as its EXIF orientation says. By itself it would also return the upper half
of a truncated file, print to stderr, or fill the memory for a small file that claims to be huge.

`decode` gives all pixels of an image; `decode_image` can decode a JPEG at a fraction of its size.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .headers import ImageError

MAX_PIXELS = 64_000_000  # 192 MB once decoded
MAX_FILE_BYTES = 1 << 30
SUFFIXES = (".jpg", ".jpeg", ".png")  # of images in a folder; the format itself is read from the file's bytes

_JPEG_MAGIC, _PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# The next JPEG marker that starts a segment: not a stuffed zero, a fill byte, TEM or a restart marker.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_JPEG_EOI = 0xD9
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Decoded:
    """An image's pixels, at full size or at a half, quarter or eighth of it."""

    pixels: np.ndarray  # uint8 [h, w, 3] RGB
    size_hw: tuple[int, int]  # the full size, in which boxes are measured; a multiple of the pixels' size


def whole(pixels: np.ndarray) -> Decoded:
    """An image whose pixels have its full size."""
    return Decoded(pixels, (pixels.shape[0], pixels.shape[1]))


def decode(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A JPEG or PNG image (a path, or the file's bytes) as uint8 [h, w, 3] RGB, EXIF orientation applied.

    Grey, palette, 16-bit, CMYK and transparent images are converted; transparency is dropped. Raises ImageError if the
    image is missing, empty, of another format, truncated, damaged, or has more than `max_pixels`.
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
    name, data, size_hw = _checked(source, max_pixels)
    by = divisor(size_hw) if divisor is not None and data.startswith(_JPEG_MAGIC) else 1
    return _by_opencv(name, data, by)


def decode_by(
    decoder: Callable[[bytes], Any | None], source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS
) -> Any:
    """As `decode_image` by another decoder: an array of its library, uint8 [h, w, 3] RGB, where that lies.

    Formats other than JPEG, and files for which the decoder returns None, are decoded by OpenCV to `Decoded`.
    """
    name, data, _ = _checked(source, max_pixels)
    found = decoder(data) if data.startswith(_JPEG_MAGIC) else None
    return _by_opencv(name, data, 1) if found is None else found


def _checked(source: str | os.PathLike[str] | bytes, max_pixels: int) -> tuple[str, bytes, tuple[int, int]]:
    """A name for messages, the file's bytes, and height and width by its header. Raises ImageError."""
    name = "image data" if isinstance(source, bytes) else os.fspath(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    height, width = _checked_size(data, name)
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {width}×{height} is {height * width / 1e6:.1f} megapixels, the limit is {max_pixels / 1e6:g}; "
            "scale it down, or raise the limit if you trust the file"
        )
    return name, data, (height, width)


def _by_opencv(name: str, data: bytes, by: int) -> Decoded:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[by])
    except cv2.error as error:
        raise ImageError(f"{name}: OpenCV cannot decode it ({error.err}); save it again as JPEG or PNG") from error
    if pixels is None:
        raise ImageError(f"{name}: damaged, or of a kind that OpenCV cannot decode; save it again as JPEG or PNG")
    cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return Decoded(pixels, (by * pixels.shape[0], by * pixels.shape[1]))


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: not a file; expected a JPEG or PNG image")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path}: {size / 1e9:.1f} GB, images of up to {MAX_FILE_BYTES / 1e9:.1f} GB are read")
            return file.read()
    except OSError as error:
        raise ImageError(f"{path}: cannot read the image: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{os.fspath(path)!r}: not a file name ({error})") from error


def _checked_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width from the file's header, after checking that the file is complete up to its end marker."""
    if not data:
        raise ImageError(f"{name}: the file is empty; copy or download it again")
    try:
        if data.startswith(_JPEG_MAGIC):
            height, width = _walk_jpeg(data)
        elif data.startswith(_PNG_MAGIC):
            height, width = _walk_png(data)
        else:
            raise ImageError(f"{name}: neither JPEG nor PNG by its content; convert it to either")
    except (IndexError, struct.error) as error:
        raise ImageError(f"{name}: truncated, the file ends early; copy or download it again") from error
    except ValueError as error:
        raise ImageError(f"{name}: {error}; copy or download it again") from error
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the header says {width}×{height} pixels; copy or download it again")
    return height, width


def _walk_jpeg(data: bytes) -> tuple[int, int]:
    """Size from the frame header. IndexError or struct.error if the data ends before the end-of-image marker."""
    size_hw = None
    position = 2
    while True:
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            raise IndexError("no end-of-image marker")
        marker = data[match.end() - 1]
        if marker == _JPEG_EOI:
            break
        # Compressed data has no length field: the search skips it, including stuffed zeros.
        (length,) = struct.unpack_from(">H", data, match.end())
        if marker in _JPEG_FRAMES and size_hw is None:
            size_hw = struct.unpack_from(">HH", data, match.end() + 3)
        position = match.end() + length
    if size_hw is None:
        raise ValueError("damaged, a JPEG without a frame header")
    return size_hw[0], size_hw[1]


def _walk_png(data: bytes) -> tuple[int, int]:
    """Size from IHDR. struct.error if the data ends before IEND, ValueError for a wrong checksum."""
    position, size_hw = len(_PNG_MAGIC), None
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        is_critical = kind[:1].isupper()
        if is_critical and zlib.crc32(memoryview(data)[position + 4 : position + 8 + length]) != checksum:
            raise ValueError(f"damaged, the checksum of its {kind.decode('latin-1')} part is wrong")
        if size_hw is None:
            if kind != b"IHDR":
                raise ValueError("damaged, a PNG that does not begin with its header")
            width, height = struct.unpack_from(">II", data, position + 8)
            size_hw = height, width
        if kind == b"IEND":
            return size_hw
        position += 12 + length
