"""The folder in which the toolkit keeps what it downloads and remembers, in the user's folder for caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home_folder() -> Path:
    """`ATSS_HOME`, or `atss-toolkit` in the user's folder for caches. It may not exist yet.

    Raises RuntimeError where no variable names a folder and the user has no home.
    """
    if own := os.environ.get("ATSS_HOME"):
        return Path(own)
    given = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return (Path(given) if given else Path.home() / ".cache") / "atss-toolkit"
