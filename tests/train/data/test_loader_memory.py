"""Loader processes share the index of a data set, also one of COCO's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def private_mb(repository: Path, names: str) -> float:
    """What the process that grew most added, over 40,000 of 120,000 images."""
    done = subprocess.run(
        [sys.executable, repository / "benchmarks/loader_memory.py", "--workers", "2", "--names", names],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return max(map(float, done.stdout.split(":")[1].split()))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is told apart on Linux only")
def test_a_loader_process_adds_little_to_an_index_of_cocos_size(repository: Path) -> None:
    assert private_mb(repository, "compact") < 5
    assert private_mb(repository, "tuple") > 7, "Python texts are copied: the measurement notices"
