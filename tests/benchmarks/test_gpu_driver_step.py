"""The step `driver` of the GPU report: what it keeps of a part that was stopped or failed, which runs again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from benchmarks.gpu import driver
from benchmarks.gpu.driver_site import MARK, check

CHILD = """
import json, sys, time
part, binding = sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else "none"
def out(**columns):
    print("ROW\\t" + json.dumps({"table": "rows of " + part, "columns": {"binding": binding, **columns}}), flush=True)
out(check="a call", result="ok")
if part == "calls" and "HANGS":
    time.sleep(60)
out(check="another call", result="FAILS" or "ok")
"""


def rows_of(path: Path, table: str) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["tables"].get(table, [])


def test_a_part_that_was_stopped_or_failed_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, child = tmp_path / "driver.json", tmp_path / "child.py"
    monkeypatch.setattr(driver, "SEQUENCES", {})
    monkeypatch.setattr(driver, "why_not", lambda binding: "no GPU")  # at once, since time is short below
    monkeypatch.setattr(driver, "CHILD", [sys.executable, str(child)])

    def run(minutes: float, hangs: str, fails: str) -> dict[str, str]:
        child.write_text(CHILD.replace("HANGS", hangs).replace("FAILS", fails), encoding="utf-8")
        driver.main(["--json", str(file), "--minutes", str(minutes), "--rehearse"])
        return {row["part"]: row["ended"] for row in rows_of(file, "driver: parts")}

    first = "driver: calls, cuda-python"
    ended = run(0.18, "hangs", "")  # 10.8 s: time for one part
    assert ended[first].startswith("stopped after 1")
    assert [row["check"] for row in rows_of(file, "rows of calls")] == ["a call"]
    assert len(ended) == 2  # and the verdicts, of which there are none

    ended = run(1, "", "FAILED: wrong")
    assert ended[first] == "checks failed"
    ended = run(1, "", "")
    assert set(ended.values()) == {"well"}
    assert len(ended) == 6
    found = [(row["binding"], row["check"], row["result"]) for row in rows_of(file, "rows of calls")]
    assert found == [
        (binding, check, "ok") for binding in ("cuda-python", "pycuda") for check in ("a call", "another call")
    ]
    assert not json.loads(file.read_text(encoding="utf-8"))["failures"]


def test_a_check_that_cannot_be_done_here_is_not_called_ok(capsys: pytest.CaptureFixture[str]) -> None:
    with check("checks", "done") as more:
        more["note"] = "fast"
    with check("checks", "left out") as more:
        more["result"] = "not run: no GPU"
    with check("checks", "fails late") as more:
        more["result"] = "not run: no GPU"
        raise ValueError("wrong")
    rows = [json.loads(line.removeprefix(MARK))["columns"] for line in capsys.readouterr().out.splitlines()]
    assert [row["result"] for row in rows[:2]] == ["ok", "not run: no GPU"]
    assert rows[2]["result"].startswith("FAILED: ValueError: wrong")
    assert rows[0]["note"] == "fast"
