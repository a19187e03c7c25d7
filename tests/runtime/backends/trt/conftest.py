"""A stand-in for TensorRT and the driver, and an engine for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ....support.device_frames import Producer
from ....support.engines import write_standin_engine
from ....support.standin.install import StandIn, install


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(monkeypatch)


@pytest.fixture
def engine(tmp_path: Path, stand_in: StandIn) -> Path:
    return write_standin_engine(tmp_path, stand_in)


@pytest.fixture
def producer(stand_in: StandIn) -> Producer:
    return Producer(stand_in.driver)
