"""The TensorRT backend's whole life on the stand-in for a GPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError, open_backend
from runtime.backends.trt import TrtBackend
from runtime.detections import finish

from .engines import assert_same, feed, write_standin_engine
from .standin.install import LIBRARIES, StandIn, install
from .standin.network import expected

BINDINGS = ("cuda-python", "pycuda")
SHAPES = [(1, 64, 64), (3, 64, 96), (8, 32, 32), (2, 64, 192), (4, 128, 256), (1, 96, 96)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(monkeypatch)


@pytest.fixture
def engine(tmp_path: Path, stand_in: StandIn) -> Path:
    return write_standin_engine(tmp_path, stand_in)


@pytest.mark.parametrize("names", LIBRARIES)
@pytest.mark.parametrize("binding", BINDINGS)
def test_whole_life(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: str, names: str) -> None:
    stand_in = install(monkeypatch, binding, names)
    path = write_standin_engine(tmp_path, stand_in)
    with open_backend(path, binding=binding) as backend:
        assert backend.concurrency == 2
        for repeat in range(3):
            for shape in SHAPES:
                images, sizes = feed(*shape, seed=repeat)
                assert_same(backend.infer(images, sizes), expected(images, sizes))
        assert len(finish(backend.infer(images, sizes), backend.manifest.thresholds)) == 1
    stand_in.check_end()
