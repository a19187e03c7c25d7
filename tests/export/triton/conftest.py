"""The description of an engine, and configurations as Triton reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from export.triton.config import import_messages
from export.triton.network import read_network
from runtime.backends.engine_file import EngineManifest, Profile, write_engine

from ..conftest import Exported

LANDSCAPE = Profile((1, 64, 64), (4, 192, 256), (16, 192, 256))
UPRIGHT = Profile((1, 64, 64), (8, 256, 192), (16, 256, 192))


def parsed(model: Path) -> Any:
    """The configuration of a model's folder, read by Triton's own messages; an unknown field is an error."""
    from google.protobuf import text_format

    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, import_messages().ModelConfig())


@pytest.fixture
def engine(exported: Exported, tmp_path: Path) -> Path:
    """The description of a standard engine of two profiles; only TensorRT reads the bytes."""
    network = read_network(exported.model)
    data = b"an engine"
    described = EngineManifest(
        manifest=network.manifest,
        flavor="tensorrt",
        library_version="10.13.2.6",
        compute_capabilities=("8.6", "9.0"),
        platform="linux-x86_64",
        engine_sha256=hashlib.sha256(data).hexdigest(),
        onnx_sha256="2" * 64,
        profiles=(LANDSCAPE, UPRIGHT),
        tensors=network.tensors,
        rebuild="python -m export.to_trt model.onnx",
        layers={},
    )
    write_engine(tmp_path / "model.engine", data, described)
    return tmp_path / "model.engine"
