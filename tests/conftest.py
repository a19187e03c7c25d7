"""Fixtures for every package's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of reference data kept outside the repository: ATSS_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("ATSS_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no reference data in {folder}; set ATSS_SHARED to its folder")
    return folder
