from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def own_copy(shapes_set: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(shapes_set, tmp_path / "copy"))
