"""What a caller may hand over as an image: a path, a file's bytes, an open file, Pillow's image, or an array.

A value is taken in the thread that hands it over, since an open file or a lazy image may not be read in another one.
Encoded images stay encoded, to be decoded where that costs least.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from .decoding import MAX_FILE_BYTES, Decoded
from .device_array import DeviceImage, is_foreign_array, is_planar
from .headers import ImageError
from .other_formats import as_rgb

Encoded: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"
EXPECTED = (
    "expected a path, a file's bytes, an open file, Pillow's image or an array, uint8 [height, width, 3] in RGB order"
)


def is_encoded(value: object) -> bool:
    """Whether a value is an image that has to be decoded: a path, a file's bytes, or an open file."""
    return isinstance(value, str | os.PathLike | bytes | bytearray | memoryview) or _is_file(value)


def is_one(value: object) -> bool:
    """Whether a value is a single image, as far as its type and its number of dimensions tell."""
    if isinstance(value, np.ndarray):
        return value.ndim != 4
    return is_encoded(value) or isinstance(value, Image.Image | Decoded | DeviceImage)


def take_encoded(value: Encoded) -> str | os.PathLike[str] | bytes:
    """A path as it is, or the bytes of an encoded image; an open file is read from its beginning. Raises ImageError."""
    if isinstance(value, str | os.PathLike | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    data = _read(value)
    if not isinstance(data, bytes | bytearray):
        raise ImageError(f"{_name(value)}: opened as text; open it with mode 'rb'")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{_name(value)}: images of up to {MAX_FILE_BYTES / 1e9:.1f} GB are read")
    return bytes(data)


def take(value: Any, number: int) -> Any:
    """An image ready for another thread: bytes, a path, or an array of this library or another's.

    Pillow's image is loaded, turned as its EXIF data asks, and converted to RGB. Planes, uint8 [3, height, width] as
    torchvision has them, become uint8 [height, width, 3]. Values of other kinds are returned as they are. Raises
    UserError that names the image by `number`.
    """
    if is_encoded(value):
        return take_encoded(value)
    if isinstance(value, Image.Image):
        try:
            return as_rgb(ImageOps.exif_transpose(value))
        except Exception as error:  # Pillow raises errors of many kinds on damaged files
            raise UserError(f"image {number}, Pillow's: {error}; open it again, or give its path") from error
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8 and is_planar(value.shape):
        return np.ascontiguousarray(value.transpose(1, 2, 0))
    return value


def require_images(values: object) -> None:
    """Raise UserError for a value that is neither an image nor several."""
    if not (is_one(values) or is_foreign_array(values)):  # an array of another library is checked when it is received
        require_several(values)


def require_several(values: object) -> None:
    """Raise UserError unless a value can be several images: a sequence, an array of four dimensions, or an iterator."""
    kind = type(values).__name__
    if isinstance(values, Mapping | Set):
        raise UserError(f"a {kind}, which gives images no order; expected a list or an iterator of images")
    if is_one(values):
        raise UserError(f"a single image, given as {kind}; expected a list or an iterator of images")
    if not isinstance(values, Iterable):
        raise UserError(f"{kind} is no image; {EXPECTED}, or a list or an iterator of images")


def _is_file(value: object) -> bool:
    return callable(getattr(value, "read", None)) and not isinstance(value, Image.Image)


def _read(file: Any) -> Any:
    try:
        if hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable()):
            file.seek(0)  # as Pillow does: the file may have been read before
        return file.read(MAX_FILE_BYTES + 1)
    except Exception as error:  # each library has files of its own
        raise ImageError(f"{_name(file)}: cannot be read ({error}); open it again with mode 'rb'") from error


def _name(file: object) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else type(file).__name__
