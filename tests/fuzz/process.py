"""Runs inputs in a worker process, which is started again after a crash or a hang."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MOST_SECONDS, MOST_BYTES = 10.0, 2 << 30  # for any input, memory as the peak of the whole process
HANG_S = 60.0  # after which a worker is killed; slow inputs that end are told by the worker itself
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of an input."""

    kind: str  # "accepted", "refused" or "failed"
    detail: str
    seconds: float = 0.0
    memory: int = 0  # peak of the process, bytes


class Reader:
    """Reads inputs of any target in one worker process. A context manager; `work` is a folder of its own.

    An input that takes more than `most_seconds`, or lifts the process's memory above `most_bytes`, has failed.
    """

    def __init__(
        self,
        seeds: Path,
        work: Path,
        most_seconds: float = MOST_SECONDS,
        most_bytes: int = MOST_BYTES,
        hang_s: float = HANG_S,
    ) -> None:
        self._seeds, self._work, self._hang_s = seeds, work, hang_s
        self._limits = str(most_seconds), str(most_bytes)
        self.input = work / "input"
        self._process: subprocess.Popen[str] | None = None
        work.mkdir(parents=True, exist_ok=True)

    def read(self, target: str, files: dict[str, bytes]) -> Outcome:
        """Write an input to its folder and have it read. The folder stays until the next input."""
        shutil.rmtree(self.input, ignore_errors=True)
        self.input.mkdir(parents=True)
        for name, content in files.items():
            path = self.input / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.read_folder(target, self.input)

    def read_folder(self, target: str, folder: Path) -> Outcome:
        """Have the input in a folder read."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"target": target, "folder": str(folder)}) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._hang_s)
        line = process.stdout.readline() if ready else ""
        if line:
            return Outcome(**json.loads(line))
        if ready:
            code = process.wait()
            self.close()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome("failed", f"crash: {name}: {self._last_words()}")
        self.close()
        return Outcome("failed", f"time: no answer in {self._hang_s:.0f} s", self._hang_s)

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self) -> str:
        return (self._work / "printed.txt").read_text(errors="replace")[-300:].strip()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            log = self._work / "printed.txt"
            log.write_bytes(b"")
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                "ATSS_HOME": str(self._work / "home"),
                "ATSS_TOOLKIT_CACHE": str(self._work / "cache"),
            }
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(self._seeds), str(log), *self._limits],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._process
