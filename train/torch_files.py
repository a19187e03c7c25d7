"""Reading torch's files without running code, and why one cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from runtime.terminal import printable

from .integrity import check_archive


def load_plain(path: Path) -> Any:
    """The tensors and plain values of a file, on the CPU, after its checksums were checked.

    Raises what torch raises, a dozen types, and DamagedError: see `why_not`.
    """
    check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def why_not(error: Exception) -> str:
    """One line, without a full stop, about an error of `load_plain`.

    torch advises to load such a file with its guard switched off, which would run the file's code: its text is passed
    on only where it says something else.
    """
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named is not None:
        return f"it refers to {named[1]}, which is code and neither a tensor nor a plain value"
    if "weights_only" in text or "weights only" in text.lower():
        return "it holds more than tensors and plain values"
    reason = text.split(". ")[0].strip().splitlines()
    return printable(reason[0].rstrip(".")) if reason else type(error).__name__
