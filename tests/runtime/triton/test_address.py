"""Addresses of served models, as commands take them where a file goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.backends import BackendError
from runtime.backends.triton.address import TritonAddress, is_address
from runtime.detector import Detector
from runtime.model_spec import ModelSpec


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("triton://localhost:8001/red", TritonAddress("localhost", 8001, "red")),
        ("triton+grpc://10.0.0.1:9/red", TritonAddress("10.0.0.1", 9, "red")),
        ("triton+http://gpu-3.example.com/red", TritonAddress("gpu-3.example.com", 8000, "red", "http")),
        ("triton://host/red-2.1/", TritonAddress("host", 8001, "red-2.1")),
        ("triton://[::1]:8001/red", TritonAddress("[::1]", 8001, "red")),
    ],
)
def test_an_address_is_read_and_written(url: str, expected: TritonAddress) -> None:
    assert TritonAddress.parse(url) == expected
    assert TritonAddress.parse(str(expected)) == expected
    assert is_address(url)
    assert ModelSpec.parse(url) == ModelSpec(url)


@pytest.mark.parametrize("name", ["model.onnx", "triton", "triton.onnx", "./triton:/x", "folder/triton/red.engine"])
def test_a_path_is_no_address(name: str) -> None:
    assert not is_address(name)
    assert ModelSpec.parse(name).path == Path(name)


@pytest.mark.parametrize(
    "url",
    [
        "triton://",
        "triton://host:8001",
        "triton://host:port/red",
        "triton://host:0/red",
        "triton+http://host:65536/red",
        "triton+udp://host/red",
        "triton://a/b/c",
    ],
)
def test_what_is_no_address_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(BackendError, match=r"expected triton://HOST:PORT/MODEL"):
        Detector(url)
