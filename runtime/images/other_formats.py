"""Decodes WebP, BMP, TIFF, GIF and PNM files with Pillow: the first image of the file.

Pillow's opener for the format is called directly, so a file is read as what its header says it is, and Pillow's own
limit of pixels, a setting of the whole process, does not apply: `decoding` checks the size first.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .headers import Header

_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


def decode_other(data: bytes, header: Header) -> np.ndarray:
    """The pixels of a file, uint8 [h, w, 3] RGB; the orientation of a TIFF is applied, that of a WebP is not.

    Pillow's conversion to RGB; transparency is dropped, and 16 bits become 8 by their upper byte. Raises ValueError
    for a file that is truncated or damaged, and for samples of other kinds, whose range is unknown.
    """
    try:
        with _opened(data, header) as image:
            image.load()
            pixels = as_rgb(image)
    except _UnknownRange:
        raise
    except Exception as error:  # Pillow raises errors of many kinds on damaged files
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"damaged, truncated, or of a kind that Pillow cannot decode ({reason})") from error
    expected_hw = header.size_hw if header.format == "TIFF" else header.stored_hw
    if pixels.shape[:2] != expected_hw:
        raise ValueError(f"damaged, its header says {_size(expected_hw)} and its pixels are {_size(pixels.shape)}")
    return pixels


def as_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of Pillow's image, uint8 [h, w, 3] RGB. Raises ValueError for samples whose range is unknown."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode not in _EIGHT_BITS:
        raise _UnknownRange(f"its samples are of Pillow's mode {image.mode}; convert it to 8 or 16 bits")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _opened(data: bytes, header: Header) -> Image.Image:
    """The file in the opener of its format. Most runs have no such file, so an opener is imported when it is needed."""
    file = io.BytesIO(data)
    if header.format == "WebP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile(file)
    if header.format == "BMP":
        from PIL.BmpImagePlugin import BmpImageFile

        return BmpImageFile(file)
    if header.format == "TIFF":
        from PIL.TiffImagePlugin import TiffImageFile

        return TiffImageFile(file)
    if header.format == "GIF":
        from PIL.GifImagePlugin import GifImageFile

        return GifImageFile(file)
    from PIL.PpmImagePlugin import PpmImageFile

    return PpmImageFile(file)


class _UnknownRange(ValueError):
    pass


def _size(size_hw: tuple[int, ...]) -> str:
    return f"{size_hw[1]}×{size_hw[0]}"
