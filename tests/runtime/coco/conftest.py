"""Models that find the red squares of `make_dataset`."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.manifest import InputShapes, Preprocess

from ...support.fakes import manifest_with, write_red_onnx


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("onnx", reason="builds the test's graphs")
    pytest.importorskip("onnxruntime", reason="runs them")
    folder = tmp_path_factory.mktemp("onnx")
    half = manifest_with(precision="fp16")
    small = manifest_with(precision="int8", sums_fit_16_bits=True, preprocess=Preprocess(short_side=32, long_side=64))
    return {
        "fp32": write_red_onnx(folder / "fp32.onnx"),
        "fp16": write_red_onnx(folder / "fp16.onnx", half),
        "small": write_red_onnx(folder / "small.onnx", small),
        "foreign": write_red_onnx(folder / "foreign.onnx", manifest_with(classes=("blue", "green"))),
        "large batches": write_red_onnx(
            folder / "large.onnx", manifest_with(inputs=InputShapes(4, 4, 32, 512, 32, 512))
        ),
    }
