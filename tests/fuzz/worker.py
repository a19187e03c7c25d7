"""The process in which inputs are read: it may run out of memory or crash without harm to the one that asks.

    python -m tests.fuzz.worker SEEDS LOG SECONDS BYTES

takes a line of JSON for each input on stdin (the target's name and the input's folder) and answers with one on stdout.
What Python or a C library prints goes to the file LOG. An input may take SECONDS and BYTES of memory.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from runtime.errors import UserError, run_main

from .planted import PLANTED
from .target import Nonsense, Target

SPARE_BYTES = 512 << 20  # of addresses above the limit of memory, which libraries reserve and don't use
MOST_CHARACTERS = 2000  # of a message
_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|cannot allocate|Unable to allocate|MemoryError", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def message_fault(error: UserError) -> str | None:
    """What is wrong with an error's message as a command prints it; None where it is a readable line."""
    printed = StringIO()
    with redirect_stderr(printed), suppress(SystemExit):
        run_main(lambda: _raise(error))
    text = printed.getvalue()
    if text.count("\n") != 1 or not text.endswith("\n"):
        return f"a message of {text.count(chr(10))} lines: {text[:300]!r}"
    if len(text) > MOST_CHARACTERS:
        return f"a message of {len(text)} characters: {text[:300]!r}"
    if found := _UNPRINTABLE.search(text[:-1]):
        return f"a message with the character {found[0]!r}: {text[:300]!r}"
    if _OUT_OF_MEMORY.search(text):
        return f"memory: {text[:300]!r}"
    return None


def _raise(error: UserError) -> None:
    raise error


def place_of(error: BaseException) -> str:
    """Where an error was raised: the last place in this project, as file:line."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(Path(__file__).resolve().parents[2])
    ours = [frame for frame in frames if frame.filename.startswith(root) and ".venv" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _target(name: str) -> Target:
    if name in PLANTED:
        return PLANTED[name]
    from .targets import TARGETS

    return TARGETS[name]


def read_input(name: str, folder: Path, seeds: Path) -> tuple[str, str]:
    """Read an input: "accepted", "refused" or "failed", and a line about it."""
    try:
        found = _target(name).read(folder, seeds)
        return "accepted", str(found)[:200] if found is not None else ""
    except UserError as error:
        fault = message_fault(error)
        return ("refused", f"{type(error).__name__}: {error}"[:300]) if fault is None else ("failed", fault)
    except Nonsense as error:
        return "failed", f"nonsense: {error}"[:1000]
    except MemoryError as error:
        return "failed", f"memory: {type(error).__name__} at {place_of(error)}: {error}"[:1000]
    except BaseException as error:
        return "failed", f"{type(error).__name__} at {place_of(error)}: {error}"[:1000]


class Meter:
    """Time and memory of one reading."""

    def __init__(self, most_bytes: int) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
        # An allocation far above the limit is refused instead of filling the machine.
        limit = _status("VmSize") + most_bytes + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        self._began, self._waited = time.monotonic(), _waited_s()

    def stop(self) -> tuple[float, int]:
        """Seconds without those in which this process waited for a processor, and the peak of memory in bytes."""
        seconds = time.monotonic() - self._began - (_waited_s() - self._waited)
        unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
        return seconds, _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _waited_s() -> float:
    """Seconds that the main thread has waited for a processor; on a shared machine that is most of the time."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


_warm: set[str] = set()


def _warm_up(name: str, folder: Path, seeds: Path) -> None:
    """Read a target's first input once before, so that importing libraries is neither its time nor its warnings."""
    if name not in _warm | PLANTED.keys():
        _warm.add(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for library in _target(name).libraries:
                importlib.import_module(library)
            read_input(name, folder, seeds)


def measured(name: str, folder: Path, seeds: Path, log: Path, most_seconds: float, most_bytes: int) -> dict[str, Any]:
    """The outcome of reading an input, with its time and memory."""
    _warm_up(name, folder, seeds)
    before = log.stat().st_size
    meter = Meter(most_bytes)
    kind, detail = read_input(name, folder, seeds)
    seconds, memory = meter.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("rb") as file:
        file.seek(before)
        printed = file.read(2000).decode(errors="replace")
    if kind != "failed":
        if seconds > most_seconds:
            kind, detail = "failed", f"time: {seconds:.1f} s; {detail}"
        elif memory > most_bytes:
            kind, detail = "failed", f"memory: {memory / 1e9:.2f} GB; {detail}"
        elif printed and not _target(name).may_print:
            kind, detail = "failed", f"printed: {printed.strip()[:500]}"
    return {"kind": kind, "detail": detail, "seconds": seconds, "memory": memory}


def main() -> None:
    """Answer until stdin ends."""
    seeds, log = map(Path, sys.argv[1:3])
    limits = float(sys.argv[3]), int(sys.argv[4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that asks
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    warnings.simplefilter("error")
    for line in requests:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        os.chdir(folder)
        answers.write(json.dumps(measured(asked["target"], folder, seeds, log, *limits)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
