"""File systems of a few pages in memory, which are really full where the other tests only say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096  # bytes; a tmpfs gives files whole pages
FILLER = "filler"


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes, mounted at a folder during the block. Skips where mounting isn't possible."""
    if not sys.platform.startswith("linux") or shutil.which("mount") is None:
        pytest.skip("mounts a tmpfs, which is Linux's")
    at.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"mounting a tmpfs takes rights that this process lacks: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def leave(at: Path, free: int) -> None:
    """Fill the disk that is mounted at a folder until so many bytes are free (rounded down to pages)."""
    (at / FILLER).unlink(missing_ok=True)
    status = os.statvfs(at)
    size = status.f_bavail * status.f_frsize - free // PAGE * PAGE
    assert size >= 0, "the disk is too small for the test"
    with (at / FILLER).open("wb") as file:
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)
    assert os.statvfs(at).f_bavail == free // PAGE


def empty(at: Path) -> None:
    """Remove everything from a folder, which may be a mount, so it stays itself."""
    for entry in at.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
