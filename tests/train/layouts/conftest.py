"""Small data sets of other layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

Make = Callable[..., Path]


@pytest.fixture
def picture(tmp_path: Path) -> Make:
    """Writes an image file below the test's folder, 80 × 60 px unless told otherwise, and returns its path."""

    def write(name: str, width: int = 80, height: int = 60, shade: int = 90) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((height, width, 3), shade, np.uint8))
        return path

    return write


@pytest.fixture
def text(tmp_path: Path) -> Make:
    """Writes a text file below the test's folder and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
