"""Which processors Triton places a network on."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.to_triton import main
from export.triton.config import import_messages
from runtime.errors import UserError

from ..conftest import Exported
from .conftest import parsed

pytest.importorskip("tritonclient.grpc", reason="pip install 'atss-toolkit[triton]'")


@pytest.mark.parametrize(
    ("backend", "device", "kind"),
    [
        ("auto", "auto", "KIND_AUTO"),
        ("auto", "gpu", "KIND_GPU"),
        ("cpu", "auto", "KIND_CPU"),
        ("openvino", "auto", "KIND_CPU"),
        ("openvino", "cpu", "KIND_CPU"),
        ("cuda", "auto", "KIND_GPU"),
        ("ort-rtx", "gpu", "KIND_GPU"),
    ],
)
def test_inline_the_backend_decides(backend: str, device: str, kind: str, exported: Exported, tmp_path: Path) -> None:
    """With KIND_AUTO a server of two GPUs would open a backend of CPUs on GPU 1, which it refuses."""
    words = ["--network", "inline", "--backend", backend, "--device", device]
    main([str(exported.model), "-o", str(tmp_path / "a"), *words])
    (group,) = parsed(tmp_path / "a/model").instance_group
    assert group.kind == import_messages().ModelInstanceGroup.Kind.Value(kind)


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("cpu", "gpu", "--device gpu: --backend cpu runs on a CPU"),
        ("cuda", "cpu", "--device cpu: --backend cuda runs on a GPU"),
        ("auto", "cpu", "--device cpu: --backend auto takes a GPU where there is one; name cpu or openvino"),
        ("tensorrt", "auto", "model.onnx: --backend tensorrt runs engines; use ort-tensorrt"),
    ],
)
def test_a_backend_and_a_device_that_do_not_go_together(
    backend: str, device: str, message: str, exported: Exported, tmp_path: Path
) -> None:
    words = ["--network", "inline", "--backend", backend, "--device", device]
    with pytest.raises(UserError, match=message) as raised:
        main([str(exported.model), "-o", str(tmp_path / "a"), *words])
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_an_engine_runs_in_tensorrt_only(engine: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an engine runs in TensorRT only; leave out --backend cpu"):
        main([str(engine), "-o", str(tmp_path / "a"), "--network", "inline", "--backend", "cpu"])
