"""Repositories of engines whose profiles take fewer batches than their graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from export.triton.config import ServingOptions
from export.triton.repository import write_repository
from runtime.backends.engine_file import EngineError, Profile, read_engine, write_engine
from runtime.manifest import from_json

from .conftest import LANDSCAPE, UPRIGHT, parsed

pytest.importorskip("tritonclient.grpc", reason="pip install 'atss-toolkit[triton]'")


def test_an_engine_gets_the_batches_of_its_profiles(engine: Path, tmp_path: Path) -> None:
    """The graph takes 1 to 16; --batch narrows that, and Triton must neither exceed it nor stay below."""
    data, described = read_engine(engine)
    narrow = [Profile((2, *one.least[1:]), one.best, (8, *one.most[1:])) for one in (LANDSCAPE, UPRIGHT)]
    write_engine(engine, data, dataclasses.replace(described, profiles=tuple(narrow)))
    write_repository(engine, tmp_path / "a", "shapes")
    write_repository(engine, tmp_path / "a", "alone", ServingOptions(placement="inline"))
    found = [parsed(tmp_path / "a" / name) for name in ("shapes", "shapes_network", "alone")]
    assert [one.max_batch_size for one in found] == [8, 8, 8]
    for one in found:
        inputs = from_json(one.parameters["manifest"].string_value, "test").inputs
        assert (inputs.batch_min, inputs.batch_max) == (2, 8), "the model in front fills batches up to the least"
    assert read_engine(tmp_path / "a/alone/1/model.engine")[1].manifest.inputs.batch_max == 16

    apart = (narrow[0], Profile((16, 64, 64), (16, 256, 192), (16, 256, 192)))
    write_engine(engine, data, dataclasses.replace(described, profiles=apart))
    with pytest.raises(EngineError, match="no batch is in all of its profiles") as raised:
        write_repository(engine, tmp_path / "b")
    assert len(str(raised.value).splitlines()) == 1
