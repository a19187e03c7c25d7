"""What a build shows while it runs, and how it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.trt import progress as trt_progress
from export.trt.progress import Phases, interruptible
from runtime.backends.engine_file import Profile

from ...support.rtx import build_for
from ..conftest import Exported


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


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """SIGINT as an interactive process has it: a parent in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_cancels_the_work_from_its_first_moment() -> None:
    cancelled = threading.Event()

    def work() -> None:
        press_ctrl_c()
        cancelled.wait(30)

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, cancelled.set)
    assert cancelled.is_set()


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_leaves_at_once_even_before_the_first_is_worked_off(monkeypatch: pytest.MonkeyPatch) -> None:
    left, over = [], threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        raise SystemExit

    def work() -> None:
        press_ctrl_c()
        over.wait(30)

    monkeypatch.setattr(trt_progress.os, "_exit", leave)
    with pytest.raises(SystemExit):
        interruptible(work, press_ctrl_c)
    over.set()
    assert left == [130]


HELD = """
import runpy, signal, sys, time
from export.trt.progress import Phases

until = sys.argv.pop(1)
step = Phases.step

def held(phases, phase, number):
    print("within the build", flush=True)
    while until == "killed" or not phases.is_cancelled:
        time.sleep(0.01)
    return step(phases, phase, number)

Phases.step = held
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("export.to_trt", run_name="__main__")
"""


@pytest.mark.parametrize(("sent", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGKILL, 1)])
def test_an_interrupted_build_leaves_nothing(
    sent: signal.Signals, times: int, exported: Exported, repository: Path, tmp_path: Path
) -> None:
    """An older engine of that name stays as it was. The first Ctrl-C waits for the library, the second doesn't.

    The library's first step lasts until the build is cancelled; for good where something else has to end it.
    """
    is_first_enough = sent == signal.SIGINT and times == 1
    out = tmp_path / "model.engine"
    out.write_bytes(b"older")
    arguments = [str(exported.model), "-o", str(out), "--compute-capability", "8.6"]
    with subprocess.Popen(
        [sys.executable, "-c", HELD, "cancelled" if is_first_enough else "killed", *arguments],
        cwd=repository,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        end = threading.Timer(300, process.kill)
        end.start()
        try:
            assert any("within the build" in line for line in process.stdout)
            process.send_signal(sent)
            if sent == signal.SIGINT:
                assert any("stopping the build; press Ctrl-C again" in line for line in process.stderr)
            if times == 2:
                process.send_signal(sent)
            _, errors = process.communicate()
        finally:
            end.cancel()
            process.kill()
    assert process.returncode == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert errors == ("interrupted\n" if sent == signal.SIGINT else "")
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
