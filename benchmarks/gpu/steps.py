"""The steps of the GPU report, and how one of them runs: in a process of its own, which is killed when its time is up.

A step that is killed, crashes or hangs keeps the figures that it had saved, and the next step runs all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 20.0  # that a step may take beyond its minutes before it is killed
_LAST_LINES = 15  # of a step's output, which are the text of its failure

Outcome = Literal["done", "not run", "time was short", "failed", "killed", "interrupted"]


@dataclass(frozen=True)
class Step:
    """A step of the report. `share` is its part of the time, in relation to the other steps' shares."""

    name: str
    what: str
    share: float
    expected_minutes: float  # on an H100, for everything that the step can measure
    module: str = ""  # by default `benchmarks.gpu.NAME`

    @property
    def command(self) -> list[str]:
        """The command that runs the step, without its options."""
        return [sys.executable, "-m", self.module or f"benchmarks.gpu.{self.name}"]


# The most valuable first: what comes last is what a short time cuts off.
STEPS = (
    Step("tests", "the tests that need a GPU, also under compute-sanitizer", 4, 5),
    Step("training", "training: losses beside the CPU's, images/s, memory, synchronisations", 6, 7),
    Step("assignment", "the assignment: microseconds and kernels", 1, 1),
    Step("onnxruntime_cuda", "the deployed ONNX file through ONNX Runtime's CUDA provider", 6.5, 8),
    Step("nms", "postprocessing and NMS: microseconds and launches", 1, 1),
    Step("driver", "runtime/cuda and the TensorRT backend on the real driver, beside the stand-in", 3, 3),
    Step("reproduction", "the paper in miniature", 8, 9),
    Step("rtx", "TensorRT for RTX on this card", 0.5, 0.5),
)


@dataclass(frozen=True)
class Ran:
    """How a step's process ended."""

    outcome: Outcome
    text: str  # the last lines of its output where it failed or was killed
    seconds: float


def minutes_of(step: Step, steps: Sequence[Step], minutes_left: float) -> float:
    """The minutes of a step out of those that are left for it and the steps after it; saved time goes to them all."""
    later = steps[[other.name for other in steps].index(step.name) :]
    return minutes_left * step.share / sum(other.share for other in later)


def run_step(step: Step, file: Path, minutes: float, rehearse: bool, limit_s: float | None = None) -> Ran:
    """Run a step, which writes its figures to `file` and what it prints to the same name with `.log`.

    It is killed with all its processes after `limit_s` seconds, by default `GRACE_S` after its minutes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [*step.command, "--json", str(file), "--minutes", f"{minutes:.3f}"] + ["--rehearse"] * rehearse
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    log = file.with_suffix(".log")
    started = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(60 * minutes + GRACE_S if limit_s is None else limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - started
    if code is None:
        return Ran("killed", f"killed after {seconds:.0f} s; its last lines:\n{_last_lines(log)}", seconds)
    if code != 0:
        how = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return Ran("failed", f"{how}; its last lines:\n{_last_lines(log)}", seconds)
    content = read_figures(file)
    if not content:
        return Ran("failed", f"wrote no figures; its last lines:\n{_last_lines(log)}", seconds)
    if content["failures"]:
        return Ran("failed", "", seconds)
    if content.get("cut"):
        return Ran("time was short", "", seconds)
    nothing = content["not_run"] and not any(content["tables"].values())
    return Ran("not run" if nothing else "done", "", seconds)


def read_figures(file: Path) -> dict[str, Any]:
    """What a step has saved: `tables`, `failures`, `not_run`; empty where it has saved nothing that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and {"tables", "failures", "not_run"} <= content.keys() else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and of its children, which are in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-_LAST_LINES:])
