"""The size of an image file by its header alone."""

from __future__ import annotations

import os

from .headers import opened, read_header


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the pixels that `decode` gives: the EXIF orientation is applied. Nothing is decoded.

    Raises ImageError if the file is missing, empty, of another format, or has no usable header. A file that is damaged
    after its header is found only by decoding it.
    """
    with opened(path) as file:
        return read_header(file, os.fspath(path)).size_hw
