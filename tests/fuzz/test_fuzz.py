"""A fixed few mutated inputs for every reader, the same in each run. `scripts/fuzz.sh` tries many more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from ..conftest import made_once
from .process import Reader
from .seeds import make_seeds
from .target import Files
from .targets import TARGETS

# The weights under other names are no file of the projects whose checkpoints are converted.
NEVER_ACCEPTED = {"foreign checkpoints", "options of pretrained"}
# What is remembered is ignored where it doesn't fit; of a header the problems are named.
NEVER_REFUSED = {"remembered speed", "engine's header", "addresses"}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "fuzz_seeds", make_seeds)


@pytest.fixture(scope="module")
def reader(seeds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with Reader(seeds, tmp_path_factory.mktemp("fuzz")) as opened:
        yield opened


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_are_read_with_sense_or_refused_in_one_line(name: str, seeds: Path, reader: Reader) -> None:
    kinds: Counter[str] = Counter()

    @settings(
        max_examples=TARGETS[name].examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name].inputs(seeds).map(Files))
    def read(files: Files) -> None:
        outcome = reader.read(name, files)
        kinds[outcome.kind] += 1
        assert outcome.kind != "failed", outcome.detail

    read()
    # A target that refuses everything, or accepts everything, shows nothing.
    assert kinds["accepted"] or name in NEVER_ACCEPTED
    assert kinds["refused"] or name in NEVER_REFUSED
