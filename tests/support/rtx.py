"""TensorRT for RTX, which builds on a CPU, and what the tests of engines ask of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.trt.build import build
from export.trt.engine import load_source
from export.trt.library import Library
from export.trt.settings import Settings
from runtime.backends.engine_file import Profile

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
LIBRARY = Library("rtx", rtx, None)
WHOLE = Profile((1, 64, 64), (4, 192, 256), (16, 1344, 1344))  # batch 1–16 and every canvas of the file
SMALL = ["--batch", "1", "4", "16", "--shapes", "64x64:192x256:1344x1344"]


def build_for(path: Path, *capabilities: str, profile: Profile = WHOLE) -> bytes:
    """The bytes of an engine for these compute capabilities."""
    return build(LIBRARY, path, load_source(path).graph, Settings((profile,), capabilities)).data


def one_line(error: BaseException) -> str:
    """The error's text, which must be a single line."""
    assert len(str(error).splitlines()) == 1
    return str(error)
