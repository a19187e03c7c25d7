"""Jobs for the actors of a cluster, which import them by name; and the actors' processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError

MARK = "ATSS_TEST_CLUSTER"  # an environment variable that the processes of a test's Ray inherit


@dataclass(frozen=True)
class Doubling:
    """Answers a number with its double; says what is wrong with the word of `refuses`."""

    refuses: str = ""
    opens: bool = True

    def open(self) -> Callable[[Any], str]:
        if not self.opens:
            raise UserError("no detector\nhere")

        def answer(task: Any) -> str:
            if task == self.refuses:
                raise UserError(f"{task}: not a number")
            return str(2 * task)

        return answer


@dataclass(frozen=True)
class Dying:
    """Kills its process at one task: whenever it comes, or once, of which it leaves a file."""

    task: int
    once: Path | None = None

    def open(self) -> Callable[[int], str]:
        def answer(task: int) -> str:
            if task == self.task and not (self.once is not None and self.once.exists()):
                if self.once is not None:
                    self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return str(task)

        return answer


def actor_processes(mark: str) -> list[int]:
    """The processes of the pool's actors that were started with `MARK=mark`, by Linux's /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if title.startswith(b"ray::") and b"Actor" in title and f"{MARK}={mark}".encode() in environment:
            found.append(int(folder.name))
    return found


@dataclass(frozen=True)
class Slow:
    """Takes a while for each task."""

    seconds: float = 0.4

    def open(self) -> Callable[[int], str]:
        def answer(task: int) -> str:
            time.sleep(self.seconds)
            return str(task)

        return answer
