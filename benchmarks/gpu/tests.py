"""The tests that need a GPU (`pytest -m gpu`), each file in a process of its own, and again under compute-sanitizer.

An illegal access spoils CUDA for the rest of a process: with a process for each file, it spoils one file.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    """The step: run the files below `folder` in `root`, then those of `runtime/cuda` under the sanitizer."""
    record = begin(__doc__, arguments)
    files = gpu_files(folder, root)
    for file in files:
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
        junit = Path(folder) / "junit.xml"
        command = [*wrapper, sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={junit}", *_plain(), file]
        try:
            ran = subprocess.run(
                command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=record.seconds_left,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
            raise TimeoutError(f"stopped, its time was up: {shortened(said)}") from error
        if not junit.exists():
            record.row(table, **{"file": file, "ended well": False})
            record.fail(part, f"pytest ended with code {ran.returncode} and without a result: {shortened(ran.stdout)}")
            return
        _record(record, table, part, file, junit, ran, bool(wrapper))


def outcomes(junit: Path) -> list[tuple[str, str, str]]:
    """The tests of a JUnit file: name, how it ended (passed, failed, skipped, error), and the text that says why."""
    found = []
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        name, ended, text = str(case.get("name")), "passed", ""
        for tag, meaning in (("skipped", "skipped"), ("failure", "failed"), ("error", "error")):
            child = case.find(tag)
            if child is not None:
                reason = child.get("message") or ""
                ended, text = meaning, reason if tag == "skipped" else (child.text or reason)
        found.append((name, ended, text))
    return found


def _record(
    record: Record,
    table: str,
    part: str,
    file: str,
    junit: Path,
    ran: subprocess.CompletedProcess[str],
    sanitized: bool,
) -> None:
    tests = outcomes(junit)
    counts = {how: sum(ended == how for _, ended, _ in tests) for how in ("passed", "failed", "skipped", "error")}
    well = ran.returncode in (0, _NO_TESTS)
    row: dict[str, Any] = {"file": file, **counts, "ended well": well}
    if sanitized:
        summary = re.findall(r"ERROR SUMMARY: (\d+) error", ran.stdout)
        row["errors of the sanitizer"] = sum(map(int, summary)) if summary else "no summary"
    record.row(table, **row)
    for name, ended, text in tests:
        if ended in ("failed", "error"):
            record.fail(f"{part}::{name}", shortened(text))
    reasons: dict[str, list[str]] = {}
    for name, ended, text in tests:
        if ended == "skipped":
            reasons.setdefault(text, []).append(name)
    for reason, names in reasons.items():
        record.skip(f"{part}: {len(names)} tests ({', '.join(names)})", reason)
    if not well and not counts["failed"] and not counts["error"]:
        record.fail(f"{part}: after the tests", f"ended with code {ran.returncode}: {shortened(ran.stdout)}")


def _plain() -> list[str]:
    """Options for a run in one process that leaves nothing behind."""
    one_process = ["-n", "0"] if importlib.util.find_spec("xdist") else []
    return ["-p", "no:cacheprovider", *one_process]


def shortened(text: str) -> str:
    """The beginning and the end of a long text: a crash says why at first, a failed test at last."""
    text = text.strip()
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[: _MOST_CHARACTERS // 2]}\n…\n{text[-_MOST_CHARACTERS // 2 :]}"


if __name__ == "__main__":
    main()
