"""The step that runs the tests for GPUs: each outcome is counted, each failure has its text, each skip its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import tests as step
from benchmarks.gpu.step import Record

MIXED = """
import pytest
pytestmark = pytest.MARK

def test_good(): pass

@pytest.mark.parametrize("x", [1, 2])
def test_skipped(x): pytest.skip("no GPU | here")

def test_bad(): assert 1 + 1 == 3, "a wrong sum"

@pytest.fixture
def broken(): raise RuntimeError("no fixture")

def test_error(broken): pass
"""
GOOD = "import pytest\n\n@pytest.MARK\ndef test_good(): pass\n\ndef test_of_a_cpu(): assert False\n"
CRASH = "import os\nimport pytest\n\n@pytest.MARK\ndef test_crash(): os.kill(os.getpid(), 11)\n"
HANGS = """
import time
import pytest
pytestmark = pytest.MARK

def test_good(): pass

def test_bad(): assert 1 + 1 == 3, "a wrong sum"

def test_skipped(): pytest.skip("no GPU here")

def test_hangs(): time.sleep(600)

def test_never_reached(): pass
"""
ORDER = """
import pytest
pytestmark = pytest.MARK

def test_compiled(): print("5", file=open("order", "a"))

def test_b(): print("3", file=open("order", "a"))

def test_a(): print("4", file=open("order", "a"))
"""


def marked(source: str) -> str:
    """The source with its mark; with it as such, the step would take this file for one that needs a GPU."""
    return source.replace("MARK", "mark.gpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "tests"
    out.mkdir()
    (out / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a GPU\n", encoding="utf-8")
    return out


def run(folder: Path, minutes: float = 2, **files: str) -> dict[str, Any]:
    for name, source in files.items():
        (folder / f"test_{name}.py").write_text(marked(source), encoding="utf-8")
    file = folder.parent / "step.json"
    step.main(["--json", str(file), "--minutes", str(minutes)], ".", folder)
    return json.loads(file.read_text(encoding="utf-8"))


def row_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in content["tables"]["tests"] if row["file"].endswith(f"test_{name}.py")]
    return {key: value for key, value in row.items() if key != "file"}


def test_every_outcome_is_recorded_and_a_crash_costs_its_file_alone(folder: Path) -> None:
    content = run(folder, mixed=MIXED, crash=CRASH, good=GOOD)
    assert row_of(content, "mixed") == {"passed": 1, "failed": 1, "skipped": 2, "error": 1, "ended well": False}
    assert row_of(content, "good") == {"passed": 1, "failed": 0, "skipped": 0, "error": 0, "ended well": True}
    assert row_of(content, "crash") == {"passed": 0, "failed": 0, "skipped": 0, "error": 0, "ended well": False}
    failures = {name.rpartition(" ")[2]: text for name, text in content["failures"].items()}
    assert set(failures) == {"test_mixed.py::test_bad", "test_mixed.py::test_error", "test_crash.py"}
    assert "a wrong sum" in failures["test_mixed.py::test_bad"]
    assert "no fixture" in failures["test_mixed.py::test_error"]
    assert "code -11 while test_crash ran" in failures["test_crash.py"]
    assert "Segmentation fault" in failures["test_crash.py"]
    ((part, reason),) = content["not_run"].items()
    assert reason.endswith("no GPU | here")
    assert "2 tests (test_skipped[1], test_skipped[2])" in part


def test_files_that_ended_well_are_kept_and_a_mended_one_is_no_failure(folder: Path) -> None:
    run(folder, mixed=MIXED, good=GOOD)
    (folder / "test_good.py").write_text(marked(GOOD + "\n@pytest.MARK\ndef test_new(): pass\n"), encoding="utf-8")
    content = run(folder, mixed=MIXED.replace("== 3", "== 2").replace("raise", "return"))
    assert row_of(content, "mixed") == {"passed": 3, "failed": 0, "skipped": 2, "error": 0, "ended well": True}
    assert row_of(content, "good")["passed"] == 1
    assert content["failures"] == {}


def test_a_file_that_hangs_is_stopped_and_tells_what_it_had_found(folder: Path) -> None:
    content = run(folder, minutes=0.4, hangs=HANGS, later=GOOD)
    assert row_of(content, "hangs") == {"passed": 1, "failed": 1, "skipped": 1, "error": 0, "ended well": False}
    failures = {name.rpartition("/")[2]: text for name, text in content["failures"].items()}
    assert set(failures) == {"test_hangs.py", "test_hangs.py::test_bad"}
    assert "a wrong sum" in failures["test_hangs.py::test_bad"]
    assert "its time was up while test_hangs ran" in failures["test_hangs.py"]
    later = {part.rpartition("/")[2]: reason for part, reason in content["not_run"].items()}
    assert later == {"test_hangs.py: 1 test (test_skipped)": "no GPU here", "test_later.py": "no time was left"}
    assert content["cut"]


def test_what_compiles_comes_last(folder: Path) -> None:
    one = "import pytest\n\n@pytest.MARK\ndef test_one(): print({number}, file=open('order', 'a'))\n"
    content = run(folder, a=ORDER, b=one.format(number=1), c=one.format(number=2))
    assert not content["failures"]
    assert (folder / "order").read_text(encoding="utf-8").split() == ["1", "2", "3", "4", "5"]


def test_the_sanitizer_comes_after_what_compiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder.parent / "sanitizer"
    tool.write_text(f"#!/bin/sh\nwhile [ $1 != {sys.executable} ]; do shift; done\nexec $@\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setattr(step, "SANITIZER", str(tool))
    monkeypatch.setattr(step, "SANITIZED", "test_b")
    one = "import pytest\n\n@pytest.MARK\ndef test_one(): print('one', file=open('order', 'a'))\n"
    content = run(folder, a=ORDER, b=one)
    assert (folder / "order").read_text(encoding="utf-8").split() == ["one", "3", "4", "5", "one"]
    assert [row["passed"] for row in content["tables"]["tests under memcheck"]] == [1]


def test_no_tests_are_no_failure_and_a_file_that_cannot_be_collected_is_one(folder: Path) -> None:
    assert run(folder)["failures"] == {}
    (folder / "test_of_cpus.py").write_text("def test_bad(): assert False", encoding="utf-8")
    content = run(folder, named="# says pytest.MARK\n", wrong="import no_such_module_at_all  # pytest.MARK")
    assert row_of(content, "named")["ended well"]
    assert not row_of(content, "wrong")["ended well"]
    ((part, text),) = content["failures"].items()
    assert part.startswith("test_wrong.py")
    assert "no_such_module_at_all" in text


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = step.shortened("begins" + 10_000 * "x" + "ends")
    assert text.startswith("begins")
    assert text.endswith("ends")
    assert 1990 < len(text) < 2010
    assert step.shortened(" short ") == "short"


def test_what_the_sanitizer_finds_is_counted_and_fails(folder: Path) -> None:
    file = folder / "test_good.py"
    file.write_text(marked(GOOD), encoding="utf-8")
    found = "import subprocess, sys\nsubprocess.run(sys.argv[1:])\nprint('= ERROR SUMMARY: 3 errors')\nsys.exit(86)"
    record = Record(folder.parent / "step.json", 2)
    step.run_file(record, "under", str(file), [sys.executable, "-c", found])
    (row,) = record.tables["under"]
    assert row["errors of the sanitizer"] == 3
    assert not row["ended well"]
    ((part, text),) = record.failures.items()
    assert part.endswith("after the tests")
    assert "ERROR SUMMARY: 3 errors" in text
