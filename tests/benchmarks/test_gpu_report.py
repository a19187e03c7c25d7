"""The GPU report with fake steps: it goes on after failures, kills what hangs, resumes, and leaves nothing out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import report as report_module
from benchmarks.gpu import steps as steps_module
from benchmarks.gpu.conditions import code_digest
from benchmarks.gpu.page import NO_CARD, REHEARSAL, markdown_table, page
from benchmarks.gpu.report import JSON, PAGE, main
from benchmarks.gpu.step import Record, begin
from benchmarks.gpu.steps import STEPS, Step, minutes_of
from runtime.errors import UserError

GOOD = """
from benchmarks.gpu.step import begin
record = begin("A step.")
open({marks!r}, "a").write("good ")
record.row("speeds", batch=1, images_per_s=12.5, card="a|b")
record.skip("the other half", "no engine here")
"""
BROKEN = """
from benchmarks.gpu.step import begin
record = begin("A step.")
open({marks!r}, "a").write("broken ")
if not record.has("speeds", batch=2):
    record.row("speeds", batch=2)
with record.part("division"):
    1 / 0
"""
CRASH = """
from benchmarks.gpu.step import begin
record = begin("A step.")
open({marks!r}, "a").write("crash ")
print("before the crash")
import os
os.kill(os.getpid(), 11)
"""
HANGS = """
import subprocess, sys, time
from benchmarks.gpu.step import begin
record = begin("A step.")
open({marks!r}, "a").write("hangs ")
if not record.has("speeds", batch=3):
    record.row("speeds", batch=3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({marks!r} + ".pid", "w").write(str(child.pid))
print("now it hangs", flush=True)
time.sleep(600)
"""
SHORT = """
from benchmarks.gpu.step import begin
record = begin("A step.")
open({marks!r}, "a").write("short ")
if not record.has_time(3600):
    record.skip("a long part", "an hour didn't fit")
"""
NOTHING = """
from benchmarks.gpu.step import begin
record = begin("A step.")
open({marks!r}, "a").write("nothing ")
record.skip("everything", "no GPU here")
record.save()
"""
SOURCES = {"good": GOOD, "broken": BROKEN, "crash": CRASH, "hangs": HANGS, "short": SHORT, "nothing": NOTHING}


class Fakes:
    """Fake steps, and the order in which they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marks = folder, folder / "marks"
        for name, source in SOURCES.items():
            (folder / f"fake_{name}.py").write_text(source.format(marks=str(self.marks)), encoding="utf-8")

    def steps(self, *names: str) -> list[Step]:
        return [Step(name, f"what {name} does", 1, 1, f"fake_{name}") for name in names]

    @property
    def ran(self) -> list[str]:
        return self.marks.read_text(encoding="utf-8").split() if self.marks.exists() else []


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    (tmp_path / "fakes").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    monkeypatch.setattr(report_module, "describe", conditions)
    return Fakes(tmp_path / "fakes")


def conditions(**changes: str) -> dict[str, Any]:
    same = {"card": "none: no driver", "driver": "none", "git commit": "abc", "sources": "123"}
    return {**same, "versions": {"torch": "2.11"}, "compute-sanitizer": "no", "environment": "", **changes}


def read(out: Path) -> tuple[dict[str, Any], str]:
    return json.loads((out / JSON).read_text(encoding="utf-8")), (out / PAGE).read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _own_handlers() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_it_goes_on_after_a_failure_and_a_crash_and_says_all_of_it(fakes: Fakes, tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "out"), "--minutes", "5"], fakes.steps("broken", "crash", "good"))
    report, text = read(tmp_path / "out")
    assert fakes.ran == ["broken", "crash", "good"]
    assert {name: entry["outcome"] for name, entry in report["steps"].items()} == {
        "broken": "failed",
        "crash": "failed",
        "good": "done",
    }
    assert "ZeroDivisionError: division by zero" in text
    assert "ended by signal 11" in text
    assert "before the crash" in text
    assert "| 1 | 12.5 | a\\|b |" in text
    assert "- good: the other half: no engine here" in text
    assert NO_CARD in text
    assert REHEARSAL not in text


def test_a_step_that_hangs_is_killed_with_its_children_and_keeps_its_rows(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "GRACE_S", 0.0)
    out = tmp_path / "out"
    # Half of the time is the first step's; it must suffice for the second one too.
    main(["--out", str(out), "--minutes", "0.4"], fakes.steps("hangs", "good"))
    report, text = read(out)
    assert report["steps"]["hangs"]["outcome"] == "killed"
    assert report["steps"]["hangs"]["tables"] == {"speeds": [{"batch": 3}]}
    assert "now it hangs" in text
    assert report["steps"]["good"]["outcome"] == "done"
    child = Path(f"{fakes.marks}.pid").read_text(encoding="utf-8")
    assert not is_running(int(child))


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    return "State:\tZ" not in status


def test_done_steps_are_kept_and_the_others_go_on(fakes: Fakes, tmp_path: Path) -> None:
    steps, arguments = fakes.steps("good", "broken", "short"), ["--out", str(tmp_path / "out"), "--minutes", "5"]
    main(arguments, steps)
    main(arguments, steps)
    assert fakes.ran == ["good", "broken", "short", "broken", "short"]
    report, text = read(tmp_path / "out")
    assert report["steps"]["broken"]["tables"] == {"speeds": [{"batch": 2}]}
    assert report["steps"]["short"]["outcome"] == "time was short"
    assert "an hour didn't fit" in text
    main([*arguments, "--fresh", "--steps", "good"], steps)
    assert fakes.ran[5:] == ["good"]
    report, text = read(tmp_path / "out")
    assert report["steps"]["good"]["tables"]["speeds"] == [{"batch": 1, "images_per_s": 12.5, "card": "a|b"}]
    assert "ZeroDivisionError" in text  # a step that wasn't asked for stays in the report


@pytest.mark.parametrize("changed", ["card", "driver", "git commit", "sources", "compute-sanitizer", "environment"])
def test_other_code_or_another_card_begins_anew(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    steps, arguments = fakes.steps("good", "broken"), ["--out", str(tmp_path / "out"), "--minutes", "5"]
    main(arguments, steps)
    own = tmp_path / "out/steps/good.files"
    own.mkdir()
    (own / "model.pt").touch()
    monkeypatch.setattr(report_module, "describe", lambda: conditions(**{changed: "other"}))
    main([*arguments, "--steps", "good"], steps)
    assert fakes.ran == ["good", "broken", "good"]
    assert not own.exists()
    report, text = read(tmp_path / "out")
    assert report["steps"]["good"]["tables"]["speeds"] == [{"batch": 1, "images_per_s": 12.5, "card": "a|b"}]
    assert f"| {changed} {conditions()[changed]} |" in text  # what the kept step ran on


def test_what_was_missing_and_is_installed_now_is_measured(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, arguments = fakes.steps("good"), ["--out", str(tmp_path / "out"), "--minutes", "5"]
    missing = {"torch": "2.11", "pycuda": "not installed"}
    monkeypatch.setattr(report_module, "describe", lambda: {**conditions(), "versions": missing})
    main(arguments, steps)
    main(arguments, steps)
    assert fakes.ran == ["good"]
    monkeypatch.setattr(report_module, "describe", lambda: {**conditions(), "versions": {**missing, "pycuda": "2026"}})
    main([*arguments, "--steps", "broken"], [*steps, *fakes.steps("broken")])
    assert "| versions pycuda not installed |" in read(tmp_path / "out")[1]
    main(arguments, steps)
    assert fakes.ran == ["good", "broken", "good"]


def test_a_step_that_only_left_out_is_not_run_and_is_tried_again(fakes: Fakes, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--minutes", "5"]
    main(arguments, fakes.steps("nothing"))
    report, text = read(tmp_path / "out")
    assert report["steps"]["nothing"]["outcome"] == "not run"
    assert "- nothing: everything: no GPU here" in text
    main(arguments, fakes.steps("nothing"))
    assert fakes.ran == ["nothing", "nothing"]


@pytest.mark.parametrize("file", ["train/loop.py", "tests/train/test_gpu.py", "runtime/cuda/canvas.ptx"])
def test_what_a_step_runs_is_in_the_digest(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    digests = set()
    for content in ("one", "other"):
        path.write_text(content, encoding="utf-8")
        digests.add(code_digest(tmp_path))
    assert len(digests) == 2


def test_a_report_that_is_ended_says_so_and_keeps_the_rows(fakes: Fakes, tmp_path: Path) -> None:
    code = (
        "from benchmarks.gpu import report, steps; "
        f"report.describe = lambda: {conditions()!r}; "
        f"report.main(['--out', {str(tmp_path / 'out')!r}], [steps.Step('hangs', 'x', 1, 1, 'fake_hangs')])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(fakes), stderr=subprocess.DEVNULL)
    wait_for(lambda: Path(f"{fakes.marks}.pid").exists())
    process.terminate()
    process.wait(30)
    child = int(Path(f"{fakes.marks}.pid").read_text(encoding="utf-8"))
    wait_for(lambda: not is_running(child))
    report, text = read(tmp_path / "out")
    assert report["steps"]["hangs"]["outcome"] == "interrupted"
    assert "the report was ended while this step ran" in text
    assert json.loads((tmp_path / "out/steps/hangs.json").read_text())["tables"] == {"speeds": [{"batch": 3}]}


def environment(fakes: Fakes) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{fakes.folder}{os.pathsep}{steps_module.ROOT}"}


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_a_rehearsal_is_marked_and_never_mixed_with_a_report(fakes: Fakes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["--out", str(out), "--rehearse", "--minutes", "5"], fakes.steps("good"))
    assert read(out)[1].splitlines()[2] == REHEARSAL
    assert REHEARSAL.startswith("**This is a rehearsal")
    with pytest.raises(UserError, match="holds a rehearsal"):
        main(["--out", str(out)], fakes.steps("good"))


def test_what_was_never_reached_is_listed(fakes: Fakes, tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "out"), "--minutes", "5", "--steps", "good"], fakes.steps("good", "crash"))
    text = read(tmp_path / "out")[1]
    assert "- crash: the whole step" in text
    assert "| crash | what crash does | not run |" in text
    assert fakes.ran == ["good"]


def test_an_empty_report_has_a_page() -> None:
    text = page({"conditions": conditions(card="NVIDIA H100"), "rehearsal": False, "steps": {}}, STEPS)
    assert all(f"- {step.name}: the whole step" in text for step in STEPS)
    assert NO_CARD not in text


def test_time_is_shared_and_what_is_saved_goes_to_the_later_steps() -> None:
    steps = [Step("a", "", 1, 1), Step("b", "", 2, 1), Step("c", "", 1, 1)]
    assert [minutes_of(step, steps, 20) for step in steps] == pytest.approx([5, 20 * 2 / 3, 20])
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_a_table_has_all_columns_of_all_rows() -> None:
    assert markdown_table([{"a": 1, "b": None}, {"c": 0.12345, "a": True}]) == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 |  |  |",
        "| yes |  | 0.1235 |",
    ]


def test_a_record_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    first = begin("A step.", ["--json", str(file), "--minutes", "0"])
    first.row("speeds", batch=1, ms=2.0)
    first.row("speeds", batch=2, ms=3.0)
    first.skip("batch 4", "no time")
    with first.part("batch 8"):
        raise ValueError("too large")
    assert not first.has_time()
    first.save()
    assert json.loads(file.read_text())["cut"]
    second = begin("A step.", ["--json", str(file), "--minutes", "5"])
    assert second.has("speeds", batch=2)
    assert not second.has("speeds", batch=4)
    assert second.has_time(60)
    assert 0 < second.seconds_left <= 300
    assert second.not_run == {}
    assert second.failures["batch 8"].startswith("ValueError: too large")
    with second.part("batch 8"):
        second.row("speeds", batch=8, ms=5.0)
    second.forget("speeds", batch=1)
    content = json.loads(file.read_text()) if second.save() is None else {}
    assert content["failures"] == {}
    assert [row["batch"] for row in content["tables"]["speeds"]] == [2, 8]
    assert not content["cut"]


def test_a_file_of_a_killed_writer_is_no_figure(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.json", 1)
    record.row("speeds", batch=1)
    whole = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert steps_module.read_figures(tmp_path / "a.json")["tables"] == {"speeds": [{"batch": 1}]}
    (tmp_path / "a.json").write_text(whole[:20], encoding="utf-8")
    assert steps_module.read_figures(tmp_path / "a.json") == {}
