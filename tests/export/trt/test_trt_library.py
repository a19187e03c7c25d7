"""Which library builds an engine here, and what a user without a GPU is told."""

from __future__ import annotations

import pytest

from export.to_trt import main
from export.trt import library as trt_library
from export.trt.library import LibraryError, choose_library
from runtime.backends import BackendError
from runtime.cuda import Device

from ...support.rtx import one_line, rtx
from ..conftest import Exported

GPU = Device(0, "NVIDIA Test", "8.6", 1 << 34, 1500.0)


def test_a_standard_engine_without_a_gpu(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    if trt_library.detect_gpu()[0] is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(LibraryError) as caught:
        main([str(exported.model), "--flavor", "tensorrt"])
    message = one_line(caught.value)
    assert "built on the GPU that runs it, and none was found here" in message
    assert "copy the .onnx file there" in message
    assert message.endswith("--flavor rtx --compute-capability 8.6 8.9 12.0")


@pytest.mark.parametrize(
    ("flavor", "capabilities", "device", "installed", "expected"),
    [
        ("auto", (), None, {"tensorrt", "rtx"}, "rtx"),
        ("auto", (), GPU, {"tensorrt", "rtx"}, "tensorrt"),
        ("auto", (), GPU, {"rtx"}, "rtx"),
        ("auto", ("8.6",), GPU, {"tensorrt", "rtx"}, "rtx"),
        ("rtx", (), GPU, {"tensorrt", "rtx"}, "rtx"),
        ("tensorrt", (), GPU, {"tensorrt"}, "tensorrt"),
        (
            "tensorrt",
            ("8.6",),
            GPU,
            {"tensorrt"},
            "--compute-capability: a standard engine fits only the GPU",
        ),
        ("tensorrt", (), GPU, {"rtx"}, "tensorrt cannot be imported .*; or build for RTX GPUs with TensorRT for RTX"),
        ("auto", (), None, {"tensorrt"}, "tensorrt-rtx cannot be imported .*; it builds engines on any machine"),
        ("auto", (), GPU, set(), r"^tensorrt cannot be imported .*; or: tensorrt-rtx cannot be imported"),
    ],
)
def test_which_library_is_chosen(
    flavor: str, capabilities: tuple[str, ...], device: Device | None, installed: set[str], expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fake(which: str) -> object:
        if which not in installed:
            raise BackendError(f"{'tensorrt-rtx' if which == 'rtx' else which} cannot be imported (no); install it")
        return rtx

    monkeypatch.setattr(trt_library, "detect_gpu", lambda: (device, "no driver"))
    monkeypatch.setattr(trt_library, "import_tensorrt", fake)
    if expected in ("rtx", "tensorrt"):
        assert choose_library(flavor, capabilities).flavor == expected  # type: ignore[arg-type]
    else:
        with pytest.raises(LibraryError, match=expected):
            choose_library(flavor, capabilities)  # type: ignore[arg-type]
