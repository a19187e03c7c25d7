"""A bf16 file in ONNX Runtime, which has no kernels for it: one line says what runs it and what to use instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="the backend under test")

import onnx
from onnx import TensorProto, helper

from runtime.backends import BackendError, open_backend
from runtime.backends.failures import is_out_of_memory

from ....support.fakes import manifest_with, write_red_onnx
from ....support.ort_fake import FakeOrt

# What ONNX Runtime 1.31's CUDA provider said on an H200.
POOLING = (
    "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: /onnxruntime_src/onnxruntime/core/optimizer/"
    "transformer_memcpy.cc:253 bool onnxruntime::TransformerMemcpyImpl::IsNodeCompatibleWithProvider(const onnxruntime:"
    ":Node&) const !node_provider_type.empty() was false. Provider type for MaxPool node with name 'node_max_pool2d' "
    "is not set.\n"
)
WORKSPACE = (
    "Error in execution: Non-zero status code returned while running Conv node. Name:'node_Conv_585' Status Message: "
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal("
    "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 35712663552\n"
)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A graph that casts to bfloat16 and pools."""
    nodes = [
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("MaxPool", ["half"], ["pooled"], kernel_shape=[2, 2]),
        helper.make_node("Cast", ["pooled"], ["out"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 7, 7])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model)
    path = tmp_path / "model.bf16.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, backend: str) -> str:
    """What a user reads, which must be one line without the library's own words."""
    with pytest.raises(BackendError) as failure:
        open_backend(path, backend=backend)
    text = str(failure.value)
    assert "\n" not in text
    assert "ONNXRuntimeError" not in text
    assert "runs in TensorRT, as an engine (python -m export.to_trt model.bf16.onnx), and in --backend openvino" in text
    return text


def test_on_the_cpu(half: Path) -> None:
    text = refusal(half, "cpu")
    assert "CPUExecutionProvider has no kernel for this file's MaxPool; a bf16 file" in text
    assert text.endswith("not in ONNX Runtime: here use the float32 file")


def test_on_a_gpu(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lacking(FakeOrt):
        def InferenceSession(self, *_: object, **__: object) -> None:
            raise RuntimeError(POOLING)

    monkeypatch.setitem(sys.modules, "onnxruntime", Lacking())  # type: ignore[arg-type]
    text = refusal(half, "cuda")
    assert " has no kernel for this file's MaxPool; a bf16 file" in text
    assert text.endswith("here use an fp16 file (python -m export.quantize MODEL.onnx --precision fp16)")


def test_in_onnx_runtimes_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest says that the file is bf16; that provider takes no half precision from us."""
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt())  # type: ignore[arg-type]
    path = write_red_onnx(tmp_path / "model.bf16.onnx", manifest_with(precision="bf16"))
    text = refusal(path, "ort-tensorrt")
    assert "TensorrtExecutionProvider has no kernel for this file's bfloat16; a bf16 file" in text
    assert text.endswith("here use the float32 file")


def test_other_failures_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeOrt):
        def InferenceSession(self, *_: object, **__: object) -> None:
            raise RuntimeError("INVALID_PROTOBUF : Load model failed")

    monkeypatch.setitem(sys.modules, "onnxruntime", Broken())  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="cannot open it") as failure:
        open_backend(write_red_onnx(tmp_path / "model.onnx"), backend="cuda")
    assert "bf16" not in str(failure.value)


def test_a_convolutions_memory_that_cannot_be_had_is_known_as_such() -> None:
    assert is_out_of_memory(RuntimeError(WORKSPACE))
    assert not is_out_of_memory(RuntimeError(POOLING))
