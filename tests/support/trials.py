"""Commands whose process is killed, or whose disk fills up, at a chosen moment: `python -m tests.support.trials`.

Reads a line of JSON per trial and answers with one. The libraries are imported once; each trial is a forked child. A
moment is the n-th time that the child opens a file for writing, renames, links, removes or makes something below the
folder `out`, as Python's audit events tell; writes themselves are no events, but `limit` bounds a file's size.
`kill_before` kills at the first event of a name, without counting.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import signal
import sys
import traceback
from typing import Any

EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def _happens_below(event: str, arguments: tuple[Any, ...], out: str) -> bool:
    if event not in EVENTS:
        return False
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or (mode is not None and mode.strip("rbtU") != "")
        if not writes:
            return False
    path = os.fspath(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    return os.path.abspath(os.fsdecode(path)).startswith(out)


def _child(trial: dict[str, Any], report: int) -> None:
    moments = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal moments
        if not _happens_below(event, arguments, trial["out"]):
            return
        moments += 1
        if moments == trial.get("kill_at") or event == trial.get("kill_before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if moments >= trial.get("fail_at", sys.maxsize) and event in ("open", "os.rename", "os.link", "os.mkdir"):
            raise OSError(trial["errno"], os.strerror(trial["errno"]), os.fsdecode(arguments[0]))

    if "limit" in trial:  # as on a full disk, writes fail with an OSError (EFBIG), since Python ignores SIGXFSZ
        resource.setrlimit(resource.RLIMIT_FSIZE, (trial["limit"], resource.RLIM_INFINITY))
    # The parent's streams know other files under these numbers.
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.addaudithook(watch)
    sys.argv = [trial["module"], *trial["arguments"]]
    try:
        runpy.run_module(trial["module"], run_name="__main__", alter_sys=True)
    finally:
        os.write(report, str(moments).encode())


def run_trial(trial: dict[str, Any]) -> dict[str, Any]:
    """The exit code (negative: the signal), the number of moments and what was printed."""
    (reader, writer), (said, saying) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        os.dup2(saying, 1)
        os.dup2(saying, 2)
        try:
            _child(trial, writer)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    os.close(writer)
    os.close(saying)
    with os.fdopen(said, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    with os.fdopen(reader, "rb") as pipe:
        counted = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "moments": int(counted or 0), "said": text}


def main() -> None:
    """Answer trials until the input ends. The arguments name the modules to import first."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run_trial(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
