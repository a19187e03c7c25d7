"""Runs jobs side by side, each in a process of one thread, until all are done or the time is up.

A job's folder holds `config.json`, `train/` (checkpoint and log), `output.txt`, and at its end `result.json`: the
metrics, or the reason of its failure. Everything survives a kill at any moment, and the next run resumes from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

from runtime.bounds import Bounds, Name
from runtime.errors import EXIT_INTERRUPTED, UserError
from runtime.files import atomic_write
from runtime.json_file import read_json_file
from runtime.outputs import alone_in
from runtime.records import record_from_dict

from .systems import Job

RESULT, CONFIG, OUTPUT, TRAIN = "result.json", "config.json", "output.txt", "train"
_POLL_SECONDS = 0.2


class Result(NamedTuple):
    """How a job ended."""

    metrics: dict[str, float]  # COCO's, 0–1; empty after a failure
    error: str  # one line; empty after a success


@dataclass(frozen=True)
class StoredResult:
    """A result as its file has it."""

    figures: dict[Name, Annotated[float, Bounds(-1, 1)]]
    error: str


def job_folder(out: Path, job: Job) -> Path:
    """The folder of a job in the folder `out` of the run."""
    return out / "jobs" / job.name


def read_result(out: Path, job: Job) -> Result | None:
    """The result of a job, or None while there is none."""
    path = job_folder(out, job) / RESULT
    if not path.exists():
        return None
    try:
        stored = record_from_dict(StoredResult, read_json_file(path, "result of a job"), str(path))
    except UserError as error:
        raise UserError(f"{error}; delete the file to train that job again") from error
    return Result(stored.figures, stored.error)


def write_result(folder: Path, result: Result) -> None:
    """Write the result of a job into the job's folder; the file calls the metrics "figures"."""
    atomic_write(folder / RESULT, json.dumps({"figures": result.metrics, "error": result.error}) + "\n")


def run(jobs: list[Job], out: Path, processes: int, seconds: float) -> None:
    """Run the jobs without a result, in their order, `processes` at a time, for at most `seconds`.

    Jobs that are running when the time is up are ended; the next run resumes from their last checkpoints. Raises
    UserError where another run works in `out`, or where `out` was begun with other settings.
    """
    deadline = time.monotonic() + seconds
    with alone_in(out), _terminable():
        for job in jobs:
            _write_config(job, job_folder(out, job))
        pending = [job for job in jobs if read_result(out, job) is None]
        running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
        try:
            while (pending or running) and time.monotonic() < deadline:
                while pending and len(running) < processes:
                    job = pending.pop(0)
                    running[job.name] = job, start_process(job_folder(out, job))
                time.sleep(_POLL_SECONDS)
                for job, process in list(running.values()):
                    if process.poll() is not None:
                        del running[job.name]
                        _ended(job, process.returncode, out, sum(read_result(out, j) is not None for j in jobs), jobs)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
    left = sum(read_result(out, job) is None for job in jobs)
    if left:
        print(f"{left} of {len(jobs)} trainings are left: run the same command again to resume", flush=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into a KeyboardInterrupt, so that no job outlives the run."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_config(job: Job, folder: Path) -> None:
    path, text = folder / CONFIG, json.dumps(asdict(job.config), indent=1) + "\n"
    if not path.exists():
        atomic_write(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} was begun with other settings: choose another --out, or delete that folder")


def start_process(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that trains the configuration of a folder. It has one thread, which uses small cores best."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with open(folder / OUTPUT, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "train.reproduce.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _ended(job: Job, code: int, out: Path, done: int, jobs: list[Job]) -> None:
    """Print how a job ended, and write a result for a job that failed by itself."""
    folder = job_folder(out, job)
    result = read_result(out, job)
    if result is None and code >= 0 and code != EXIT_INTERRUPTED:
        lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        result = Result({}, last if code else "it ended without a result")
        write_result(folder, result)
        done += 1
    if result is None:
        text = f"ended by signal {-code}, and will be tried again by the next run"
    else:
        text = f"FAILED: {result.error}" if result.error else f"AP {100 * result.metrics['AP']:.1f}"
    print(f"{time.strftime('%H:%M:%S')} [{done}/{len(jobs)}] {job.name}: {text}", flush=True)
