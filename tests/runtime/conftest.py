from __future__ import annotations

from pathlib import Path

import pytest

from ..support.fakes import write_red_onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finder of red rectangles as a file."""
    pytest.importorskip("onnx", reason="builds the test's graph")
    pytest.importorskip("onnxruntime", reason="runs it")
    return write_red_onnx(tmp_path_factory.mktemp("onnx") / "red.onnx")
