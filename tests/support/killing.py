"""Runs commands whose process is killed or whose disk fills up, and checks what they leave."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import onnx
import pytest
import torch

from runtime import cli

from .small_disk import FILLER, PAGE, empty, leave, small_disk

ROOT = Path(__file__).parents[2]
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def few_conditions(count: int, largest: int) -> list[dict[str, int]]:
    """Some full disks, for a command with so many moments whose largest output has so many bytes."""
    return [
        {"limit": 50},
        {"limit": largest // 2 - 1},
        {"fail_at": 1, "errno": errno.ENOSPC},
        {"fail_at": (count + 1) // 2, "errno": errno.EDQUOT},
        {"fail_at": count, "errno": errno.EROFS},
    ]


def all_conditions(count: int, largest: int) -> list[dict[str, int]]:
    """Full disks at every moment, and at 20 sizes."""
    failures = [{"fail_at": moment, "errno": ERRORS[moment % 4]} for moment in range(1, count + 1)]
    return failures + [{"limit": number * largest // 20} for number in range(20)]


class Trial(NamedTuple):
    """What a command is given, what it leaves in the folder `out`, and what it is given after a kill."""

    arguments: str
    files: str
    again: str = ""
    replaces: bool = True  # outputs that are there; other commands refuse them, or do nothing where they are done
    room: int = 0  # bytes that the command asks to be free before it begins


class Runner:
    """Runs commands in children of one process that has imported the libraries."""

    def __init__(self, folder: Path, modules: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.trials", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.folder = folder

    def __call__(self, command: str, arguments: str, **how: Any) -> dict[str, Any]:
        """How a command ended, under the conditions of `tests.support.trials`."""
        trial = {"module": cli.COMMANDS[command].module, "arguments": arguments.split(), "out": f"{self.folder}/out"}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(trial | how), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)


def begin(folder: Path, command: str) -> Path:
    """An empty folder `out`."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if command == "plot":
        shutil.copy(folder / "log.jsonl", out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    """All files of a folder, by their names in it."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def temporaries(out: Path) -> list[str]:
    """Temporary files and folders in `out` and beside it."""
    return [str(path) for path in [*out.parent.iterdir(), *out.rglob("*")] if ".tmp" in path.name]


def _lines(path: Path) -> None:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # it grows while the command runs
            json.loads(line)


def _image(path: Path) -> None:
    assert cv2.imread(str(path)) is not None


def _parquet(path: Path) -> None:
    # Of its bytes: pyarrow keeps a file open for a while, and a removed one then still takes its space.
    pytest.importorskip("pyarrow.parquet").read_table(io.BytesIO(path.read_bytes()))


def _ends_with(text: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        assert text in path.read_text(encoding="utf-8").rstrip().splitlines()[-1]

    return check


WHOLE: dict[str, Callable[[Path], object]] = {
    ".html": _ends_with("</html>"),
    ".md": _ends_with("Written by atss-toolkit"),
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": _lines,
    ".jpg": _image,
    ".png": _image,
    ".parquet": _parquet,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".onnx": lambda path: onnx.load(path).SerializeToString(),
    ".mp4": lambda path: cv2.VideoCapture(str(path)).read()[1].shape,
}


def require_whole(out: Path, trial: Trial, before: dict[str, bytes]) -> None:
    """Every output is that of before, or can be read to its end."""
    named = trial.files.split()
    for name, content in contents(out).items():
        if content != before.get(name) and name in named:
            WHOLE.get(Path(name).suffix, lambda path: None)(out / name)


def complete(runner: Runner, command: str, trial: Trial) -> tuple[int, dict[str, bytes]]:
    """The moments of an undisturbed run, and what it leaves."""
    if command == "loadgen":
        pytest.importorskip("mlperf_loadgen", reason="the command needs it")
    if "parquet" in trial.arguments:
        pytest.importorskip("pyarrow", reason="the command needs it")
    out = begin(runner.folder, command)
    ended = runner(command, trial.arguments)
    assert ended["code"] == 0, ended["said"]
    left = contents(out)
    assert set(trial.files.split()) <= left.keys()
    assert temporaries(out) == []
    require_whole(out, trial, {})
    return ended["moments"], left


def few(count: int) -> list[int]:
    """A moment in the middle and the last, of so many."""
    return sorted({(count + 1) // 2, count})


def kill(runner: Runner, command: str, trial: Trial, moments: Callable[[int], list[int]]) -> None:
    """Kill the command at these of its moments, and then run it to its end, in an empty folder and on older outputs."""
    count, left = complete(runner, command, trial)
    for number, moment in enumerate(moments(count)):
        out = begin(runner.folder, command)
        before = contents(out)
        replaced = bool(number % 2) and trial.replaces
        if replaced:
            for name, content in left.items():
                (out / name).write_bytes(content)
            before = left
        ended = runner(command, trial.arguments, kill_at=moment)
        if replaced and ended["code"] == 0 and ended["moments"] < moment:  # an older output, such as ranges, was reused
            require_whole(out, trial, before)
            continue
        assert ended["code"] == -9, f"moment {moment} of {count}: {ended}"
        require_whole(out, trial, before)
        ended = runner(command, trial.again or trial.arguments)
        if not trial.replaces and ended["code"] == 2:  # the kill came after the first rename
            assert re.search("exists already|has a model of that name", ended["said"]), ended
            for name in {name.split("/")[0] for name in trial.files.split()}:
                shutil.rmtree(out / name, ignore_errors=True)
            ended = runner(command, trial.arguments)
        assert ended["code"] == 0, f"after moment {moment} of {count}: {ended['said']}"
        assert set(trial.files.split()) <= contents(out).keys()
        assert temporaries(out) == [], f"after moment {moment} of {count}"
        require_whole(out, trial, {})


def kill_and_fill_once(runner: Runner, command: str, trial: Trial) -> None:
    """A kill before the first rename and a disk that is full in the middle of the largest output: three runs in all."""
    out = begin(runner.folder, command)
    ended = runner(command, trial.arguments, kill_before="os.rename")
    assert ended["code"] == -9, ended
    assert not contents(out).keys() & set(trial.files.split())
    assert temporaries(out), "the kill came before anything was written"
    ended = runner(command, trial.arguments)
    assert ended["code"] == 0, ended["said"]
    left = contents(out)
    assert set(trial.files.split()) <= left.keys()
    assert temporaries(out) == []
    require_whole(out, trial, {})
    ended = runner(command, trial.arguments, limit=max(map(len, left.values())) // 2)
    assert ended["code"] == 2, ended
    assert len(re.findall("^error: cannot write", ended["said"], re.MULTILINE)) == 1, ended["said"]
    assert "Traceback" not in ended["said"], ended["said"]
    assert "Exception ignored" not in ended["said"], ended["said"]
    assert contents(out) == left
    assert temporaries(out) == []


def fill(runner: Runner, command: str, trial: Trial, conditions: Callable[[int, int], list[dict[str, int]]]) -> None:
    """Run the command on full disks."""
    count, left = complete(runner, command, trial)
    largest = max(len(content) for name, content in left.items() if name in trial.files.split())
    for number, condition in enumerate(conditions(count, largest)):
        out = begin(runner.folder, command)
        before = contents(out)
        if number % 2 and trial.replaces:
            for name, content in left.items():
                (out / name).write_bytes(content)
            before = left
        ended = runner(command, trial.arguments, **condition)
        assert "Traceback" not in ended["said"], (condition, ended["said"])
        assert "Exception ignored" not in ended["said"], (condition, ended["said"])
        assert temporaries(out) == [], condition
        require_whole(out, trial, before)
        assert ended["code"] in (0, 2), (condition, ended)
        lines = [line for line in ended["said"].splitlines() if line.startswith("error: ")]
        assert len(lines) == (ended["code"] == 2), (condition, ended["said"])
        if condition.get("fail_at") == 1 or condition.get("limit", largest) < largest // 2:
            assert ended["code"] == 2, (condition, ended["said"])


def fill_disk(runner: Runner, command: str, trial: Trial) -> None:
    """Run the command on a disk that is really full, at once and later, and on the same disk when there is room again.

    The old outputs are the command's own with a byte added, so a new one is told from them. JSON lines are not among
    them: they are for reading while the command runs, which begins with an empty file.
    """
    _, left = complete(runner, command, trial)
    outputs = {name: content for name, content in left.items() if name in trial.files.split()}
    kept = {name: content + b"\n" for name, content in outputs.items() if not name.endswith(".jsonl")}
    old = kept if trial.replaces else {}
    largest, total = (take(map(len, outputs.values())) for take in (max, sum))
    out = begin(runner.folder, command)
    began = contents(out)
    with small_disk(out, 4 * total + 256 * PAGE + trial.room):
        for free in sorted({0, PAGE, largest // 2, largest - 1, total - 1}):
            empty(out)
            for name, content in (began | old).items():
                (out / name).write_bytes(content)
            leave(out, free)
            ended = runner(command, trial.arguments)
            where = (free, ended["said"])
            assert "Traceback" not in ended["said"], where
            assert "Exception ignored" not in ended["said"], where
            assert temporaries(out) == [], where
            assert ended["code"] in (0, 2), where
            if free // PAGE < -(-largest // PAGE):
                assert ended["code"] == 2, where
            assert len(re.findall("^error: ", ended["said"], re.MULTILINE)) == (ended["code"] == 2), where
            after = contents(out)
            assert old.keys() <= after.keys(), where
            if ended["code"] == 2 and (free == 0 or len(old) == 1):
                assert [name for name, content in old.items() if after[name] != content] == [], where
            require_whole(out, trial, old)
            (out / FILLER).unlink()
            ended = runner(command, trial.again or trial.arguments)
            if not trial.replaces and ended["code"] == 2:
                assert re.search("exists already|has a model of that name", ended["said"]), where
            else:
                assert ended["code"] == 0, (where, ended["said"])
                assert temporaries(out) == [], where
                assert outputs.keys() <= contents(out).keys(), where
                require_whole(out, trial, {})
