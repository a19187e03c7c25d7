"""How verdicts of the stand-in and of the real driver are given and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

import benchmarks.gpu.driver_graphs
import benchmarks.gpu.driver_sequences  # noqa: F401  both register sequences
from benchmarks.gpu.driver_site import MARK
from benchmarks.gpu.driver_verdicts import BROKEN, DIED, EXPECTED_STRICTER, SEQUENCES, agreement, unexpected


@pytest.mark.parametrize(
    ("standin", "driver", "agrees"),
    [
        ("accepted: 3", "accepted: 3", "same"),
        ("accepted: 3", "accepted: 4", "VALUES DIFFER"),
        ("refused: a rule", "refused: cudaErrorInvalidValue", "same"),
        ("refused: a rule", "accepted", "stand-in stricter"),
        ("accepted", "refused: cudaErrorInvalidValue", "STAND-IN LAXER"),
        ("accepted", f"accepted{BROKEN}cudaErrorIllegalAddress", "STAND-IN LAXER"),
        ("accepted", f"{DIED} (exit status -11)", "STAND-IN LAXER"),
        ("refused: a rule", f"{DIED} (exit status -11)", "same"),
        ("not comparable: AttributeError", "accepted", "not comparable"),
    ],
)
def test_how_verdicts_compare(standin: str, driver: str, agrees: str) -> None:
    assert agreement(standin, driver) == agrees


def test_only_unexpected_differences_are_failures() -> None:
    known = min(EXPECTED_STRICTER)
    assert not unexpected({known: "stand-in stricter", "A copy": "same", "A launch": "not comparable"})
    assert unexpected({"A copy": "stand-in stricter"}) == ["A copy: stand-in stricter"]
    assert unexpected({known: "STAND-IN LAXER"}) == [f"{known}: STAND-IN LAXER"]
    assert unexpected({known: "VALUES DIFFER"}) == [f"{known}: VALUES DIFFER"]


def test_the_stand_in_gives_a_verdict_of_every_sequence(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.driver_child", "verdicts"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [json.loads(line[len(MARK) :]) for line in done.stdout.splitlines() if line.startswith(MARK)]
    verdicts = {row["columns"]["sequence"]: row["columns"]["verdict"] for row in rows if row["table"] == "verdict"}
    assert len(verdicts) > 70
    assert not [verdict for verdict in verdicts.values() if verdict.startswith("not comparable")]
    accepted = {name for name, verdict in verdicts.items() if verdict.startswith("accepted")}
    assert not EXPECTED_STRICTER - SEQUENCES.keys()
    assert not EXPECTED_STRICTER & accepted
    for name, value in (
        ("The device of memory that CUDA doesn't know", -2),
        ("A kernel that copies an image to its canvas", 95670),  # as on an H200
        ("A kernel whose arguments are given by their addresses", 95670),
        ("The kind and the device of pinned memory", [1, 0]),
    ):
        assert verdicts[name] == f"accepted: {value}"
    assert sum(verdict.startswith("refused") for verdict in verdicts.values()) > 40
    assert sum(verdict.startswith("accepted") for verdict in verdicts.values()) > 15
