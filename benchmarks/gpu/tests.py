"""The tests that need a GPU (`pytest -m gpu`), each file in a process of its own, and again under compute-sanitizer.

An illegal access spoils CUDA for the rest of a process: with a process for each file, it spoils one file. How each
test ended is written as it ends, so that a file that crashes or is stopped still tells it. Files with tests that
compile, which take minutes, come after the others. The sanitizer comes last: it makes everything many times slower, and
the step `driver` has its tools too.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .outcomes import BEGUN, FINISHED, Outcome, is_slow, read
from .step import Record, begin
from .steps import ROOT

FOLDER = "tests"
SANITIZED = "tests/runtime/cuda"  # the tests of our own CUDA calls and of our kernel
SANITIZER = "compute-sanitizer"
_MOST_CHARACTERS = 2000  # of a failed test's text
_FEW_S = 15.0  # a file isn't started with less time left
_SANITIZER_CODE = 86  # that the sanitizer exits with where it found an error
_NO_TESTS = 5  # pytest's code where nothing is selected


def main(arguments: Sequence[str] | None = None, folder: str = FOLDER, root: Path = ROOT) -> None:
    """The step: the files below `folder` in `root`, slow ones last; then `runtime/cuda` under the sanitizer."""
    record = begin(__doc__, arguments)
    files = gpu_files(folder, root)
    for file in sorted(files, key=lambda file: has_slow_tests(root / file)):
        run_file(record, "tests", file, [], root)
    sanitizer = shutil.which(SANITIZER)
    memcheck = [str(sanitizer), "--tool", "memcheck", "--error-exitcode", str(_SANITIZER_CODE)]
    # The tests provoke failing calls on purpose; only what kernels and copies do counts.
    memcheck += ["--report-api-errors", "no", "--target-processes", "all"]
    for file in files:
        if not file.startswith(SANITIZED):
            continue
        if sanitizer is None:
            record.skip(f"memcheck: {file}", f"{SANITIZER} is not on the PATH")
        else:
            run_file(record, "tests under memcheck", file, memcheck, root)
    record.save()


def gpu_files(folder: str, root: Path = ROOT) -> list[str]:
    """The files below `folder` that have tests for a GPU, from `root`: collecting all tests would take a minute."""
    paths = sorted((root / folder).rglob("test_*.py"))
    marked = [path for path in paths if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]
    return [path.relative_to(root).as_posix() for path in marked]


def run_file(record: Record, table: str, file: str, wrapper: list[str], root: Path = ROOT) -> None:
    """Run the tests of a file that need a GPU and record how they ended; `wrapper` is a command that runs pytest."""
    part = f"memcheck: {file}" if wrapper else file
    if any(row["file"] == file and row["ended well"] for row in record.tables.get(table, [])):
        return
    record.forget(table, file=file)
    for name in [name for name in record.failures if name.startswith(part)]:
        del record.failures[name]
    if not record.has_time(_FEW_S):
        record.skip(part, "no time was left")
        return
    with record.part(part), tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "outcomes.jsonl"
        command = [*wrapper, sys.executable, "-m", "pytest", "-m", "gpu", *_plain(), "--outcomes", str(lines), file]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        try:
            ran = subprocess.run(
                command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=record.seconds_left, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
            said, how, well = ran.stdout, f"ended with code {ran.returncode}", ran.returncode in (0, _NO_TESTS)
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
            how, well = "was stopped, its time was up", False
        _record(record, table, part, file, read(lines), said, how, well, bool(wrapper))


def has_slow_tests(file: Path) -> bool:
    """Whether a file has tests that compile."""
    return any(map(is_slow, re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))))


def _record(
    record: Record,
    table: str,
    part: str,
    file: str,
    outcomes: list[Outcome],
    said: str,
    how: str,
    well: bool,
    sanitized: bool,
) -> None:
    """Record the outcomes of a file's tests, and its end `how` where that says more than they do."""
    counts = {kind: sum(one.ended == kind for one in outcomes) for kind in ("passed", "failed", "skipped", "error")}
    row: dict[str, Any] = {"file": file, **counts, "ended well": well}
    if sanitized:
        summary = re.findall(r"ERROR SUMMARY: (\d+) error", said)
        row["errors of the sanitizer"] = sum(map(int, summary)) if summary else "no summary"
    record.row(table, **row)
    for test, ended, text in outcomes:
        if ended in ("failed", "error"):
            record.fail(f"{part}::{test}", shortened(text))
    reasons: dict[str, list[str]] = {}
    for test, ended, text in outcomes:
        if ended == "skipped":
            reasons.setdefault(text, []).append(test)
    for reason, tests in reasons.items():
        record.skip(f"{part}: {len(tests)} test{'s' if len(tests) > 1 else ''} ({', '.join(tests)})", reason)
    if not any(one.ended == FINISHED for one in outcomes):
        running = [one.test for one in outcomes[-1:] if one.ended == BEGUN]
        where = f" while {running[0]} ran" if running else ""
        record.fail(part, f"pytest {how}{where}: {shortened(said)}")
    elif not well and not counts["failed"] and not counts["error"]:
        record.fail(f"{part}: after the tests", f"{how}: {shortened(said)}")


def _plain() -> list[str]:
    """Options for a run in one process that leaves nothing behind."""
    one_process = ["-n", "0"] if importlib.util.find_spec("xdist") else []
    return ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.outcomes", *one_process]


def shortened(text: str) -> str:
    """The beginning and the end of a long text: a crash says why at first, a failed test at last."""
    text = text.strip()
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[: _MOST_CHARACTERS // 2]}\n…\n{text[-_MOST_CHARACTERS // 2 :]}"


if __name__ == "__main__":
    main()
