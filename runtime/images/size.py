"""The size of an image file by its header alone."""

from __future__ import annotations

import os
from pathlib import Path

from .headers import ImageError, read_header


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the pixels that `decode` gives: the EXIF orientation is applied. Nothing is decoded.

    Raises ImageError if the file is missing, empty, of another format, or has no usable header. A file that is damaged
    after its header is found only by decoding it.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            return read_header(file, name).size_hw
    except OSError as error:
        raise ImageError(f"{name}: cannot read the image: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{name!r}: not a file name ({error})") from error
