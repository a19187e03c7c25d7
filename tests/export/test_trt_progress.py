"""What a build shows while it runs, and how it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.trt_progress import Phases
from runtime.engine_file import Profile

from .conftest import Exported
from .rtx import build_for


def test_progress_is_of_nested_phases_and_never_falls() -> None:
    phases = Phases(show=False)
    assert phases.fraction() == 0
    phases.start("build", None, 4)
    seen = [phases.fraction()]
    assert phases.step("build", 0)
    phases.start("optimize", "build", 2)
    seen.append(phases.fraction())
    phases.step("optimize", 0)
    phases.start("passes", "optimize", 10)
    phases.step("passes", 4)
    seen.append(phases.fraction())
    assert seen == [0, 0.25, pytest.approx(0.25 * (1 + 0.5 * (1 + 0.5)))]
    phases.finish("passes")
    phases.finish("optimize")
    phases.step("unheard", 3)
    phases.step("build", 3)
    assert phases.fraction() == 1
    phases.is_cancelled = True
    assert not phases.step("build", 3)
    phases.finish("build")
    phases.close()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing(
    sent: signal.Signals, exported: Exported, repository: Path, tmp_path: Path
) -> None:
    """An older engine of that name stays as it was."""
    out = tmp_path / "model.engine"
    out.write_bytes(b"older")
    process = subprocess.Popen(
        [sys.executable, "export/to_trt.py", str(exported.model), "-o", str(out), "--compute-capability", "8.6"],
        cwd=repository,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert any("profile 0" in line for line in process.stdout)
    time.sleep(0.5)
    process.send_signal(sent)
    if sent == signal.SIGINT:
        assert any("stopping the build; press Ctrl-C again" in line for line in process.stderr)
        process.send_signal(sent)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    assert out.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]


def test_a_build_stops_where_the_library_asks(fixed: tuple[object, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def step(phases: Phases, phase: str, number: int) -> bool:
        steps.append(phase)
        phases.is_cancelled = len(steps) >= 50  # as Ctrl-C does
        return not phases.is_cancelled

    monkeypatch.setattr(Phases, "step", step)
    with pytest.raises(KeyboardInterrupt):
        build_for(fixed[1], "8.6", profile=Profile((1, 192, 224), (1, 192, 224), (1, 192, 224)))
    assert len(steps) >= 50
