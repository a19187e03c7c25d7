"""Reading pictures."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from .errors import UserError

MAX_PIXELS = 64_000_000  # 192 MB once decoded


class ImageError(UserError):
    """A picture that cannot be read."""


def decode(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A JPEG or PNG picture as uint8 [h, w, 3] RGB, EXIF orientation applied. Raises ImageError."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError("cannot decode")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
