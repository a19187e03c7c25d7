"""TensorRT for RTX builds DeepStream's variants, and the description says whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.deepstream.variant import to_variant
from export.onnx_model.network import load_deployed
from export.to_trt import main as to_trt
from runtime.backends import BackendError
from runtime.backends.engine_file import read_engine
from runtime.backends.trt.backend import TrtBackend

from ...support.rtx import one_line, rtx


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_variant_is_built(precision: str, deployed: dict[str, Path], tmp_path: Path) -> None:
    model, manifest = load_deployed(deployed[precision])
    path = tmp_path / "model.onnx"
    path.write_bytes(to_variant(model, manifest, (96, 128)).SerializeToString())
    engine = tmp_path / "model.engine"
    assert (
        to_trt(
            [str(path), "-o", str(engine), "--flavor", "rtx", "--compute-capability", "8.6", "--batch", "1", "2", "4"]
        )
        == 0
    )
    with pytest.raises(BackendError, match="made for DeepStream's nvinfer") as refused:
        TrtBackend(engine)
    one_line(refused.value)
    _, described = read_engine(engine)
    assert described.library_version == rtx.__version__
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in described.tensors] == [
        ("images", "float32", (-1, 3, 96, 128)),
        ("num_detections", "int32", (-1, 1)),
        ("detection_boxes", "float32", (-1, 100, 4)),
        ("detection_scores", "float32", (-1, 100)),
        ("detection_classes", "float32", (-1, 100)),
    ]
    assert [profile.most for profile in described.profiles] == [(4, 96, 128)]
