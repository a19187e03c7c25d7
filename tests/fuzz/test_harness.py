"""The harness finds the faults that it looks for: planted readers have one each."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import UserError

from . import run as long_run
from . import worker
from .mutation import NUMBERS, as_json, changed, damaged, json_files, places
from .planted import PLANTED
from .process import Outcome, Reader
from .run import Run, kind_of, main, shares
from .targets import TARGETS

DOCUMENT = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "version": 1.5}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    work = tmp_path_factory.mktemp("harness")
    with Reader(work, work / "work", most_seconds=1.0, most_bytes=300 << 20, hang_s=4.0) as opened:
        yield opened


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("key_error", "KeyError at planted.py:"),
        ("nonsense", "nonsense: a file without sense was accepted"),
        ("sleep", "time: 1."),
        ("hang", "time: no answer in 4 s"),
        ("allocate", "memory: "),
        ("allocate_slowly", "memory: 0."),
        ("hidden_allocation", "memory: "),
        ("segfault", "crash: SIGSEGV"),
        ("abort", "crash: SIGABRT"),
        ("print", "printed: libpng warning: something"),
        ("warn", "RuntimeWarning at planted.py:"),
    ],
)
def test_a_planted_fault_is_found(fault: str, told: str, reader: Reader) -> None:
    outcome = reader.read(f"planted {fault}", {"a": b"x"})
    assert outcome.kind == "failed"
    assert outcome.detail.startswith(told), outcome.detail
    # Whatever happened to the worker, the next input is read.
    assert reader.read("planted accept", {"a": b"x"}).kind == "accepted"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("class \x1b[31m is unknown", "a message with the character '\\x1b'"),
        ("x" * 2100, "a message of 2101 characters"),
        ("one\ntwo", "a message of 2 lines"),
    ],
)
def test_a_message_that_no_terminal_should_get_is_a_fault(
    message: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one place that prints messages cleans them; without it the fault is found."""
    assert worker.message_fault(UserError(message)) is None

    def prints_as_it_is(main: Callable[[], object]) -> None:
        try:
            main()
        except UserError as error:
            print(error, file=sys.stderr)

    monkeypatch.setattr(worker, "run_main", prints_as_it_is)
    assert (worker.message_fault(UserError(message)) or "").startswith(told)


def test_what_is_right_is_no_fault(reader: Reader) -> None:
    outcome = reader.read("planted accept", {"a": b"x"})
    assert (outcome.kind, outcome.detail) == ("accepted", "read")
    assert 0 <= outcome.seconds < 10
    assert 1e7 < outcome.memory < 2 << 30
    outcome = reader.read("planted refuse", {"a": b"x"})
    assert (outcome.kind, outcome.detail) == ("refused", "UserError: a.json: no image; give another file")
    assert reader.read("planted nonsense", {"a": b"valid"}).kind == "accepted"


def test_an_input_is_a_folder_of_files(reader: Reader) -> None:
    reader.read("planted accept", {"a": b"x", "sub/b": b"y"})
    assert {str(path.relative_to(reader.input)) for path in reader.input.rglob("*")} == {"a", "sub", "sub/b"}
    reader.read("planted accept", {"c": b"z"})
    assert [path.name for path in reader.input.iterdir()] == ["c"]


def _quick(count: int) -> settings:
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_changes_reach_every_place_and_leave_the_valid_document_alone() -> None:
    before, seen = json.dumps(DOCUMENT), set()

    @_quick(300)
    @given(changed(DOCUMENT, 1))
    def look(document: object) -> None:
        text = as_json(document)
        assert "@raw" not in text
        assert "@twice" not in text
        seen.add(text)

    look()
    assert json.dumps(DOCUMENT) == before
    assert len(seen) > 150
    assert any(text.count('"version"') == 2 for text in seen), "no key stands twice"
    assert any("9" * 400 in text for text in seen)
    assert json.loads(as_json({"a": "@raw-1e400@", "b": NUMBERS[0]})) == {"a": math.inf, "b": 0}
    assert places(DOCUMENT) == [
        *(("images",), ("images", 0), ("images", 0, "id"), ("images", 0, "file_name")),
        *(("annotations",), ("version",)),
    ]


def test_damage_changes_bytes_and_keeps_the_beginning() -> None:
    data = bytes(range(200))
    lengths, changed_bytes = set(), 0

    @_quick(200)
    @given(damaged(data, first=10))
    def look(found: bytes) -> None:
        nonlocal changed_bytes
        lengths.add(len(found))
        changed_bytes += found != data
        assert found[:10] == data[:10]

    look()
    assert changed_bytes > 150
    assert min(lengths) < 200 < max(lengths)


def test_files_are_mostly_json() -> None:
    parsed = 0

    @_quick(100)
    @given(json_files(DOCUMENT))
    def look(data: bytes) -> None:
        nonlocal parsed
        try:
            json.loads(data)
            parsed += 1
        except (ValueError, RecursionError):
            pass

    look()
    assert 60 < parsed < 100


@pytest.fixture
def planted_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for a long run over planted targets, which needs no valid inputs."""
    monkeypatch.setattr(long_run, "make_seeds", lambda folder: folder.mkdir())
    monkeypatch.setattr(long_run, "PIECE", 3)
    for name in ("planted accept", "planted refuse", "planted key_error"):
        monkeypatch.setitem(TARGETS, name, PLANTED[name])
    return tmp_path / "run"


def test_a_long_run_counts_keeps_what_failed_and_goes_on_where_it_ended(
    planted_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = [option for name in ("accept", "refuse", "key_error") for option in ("--only", f"planted {name}")]
    call = [*only, "--inputs", "9", "--jobs", "1", "--out", str(planted_run)]
    assert main([*call, "--minutes", "0"]) == 0  # no time for any
    assert not (planted_run / "log.jsonl").exists()
    assert main(call) == 1
    rows = [line.split(" | ")[:5] for line in (planted_run / "table.md").read_text().splitlines() if "planted" in line]
    # Hypothesis knows that these strategies have one input.
    assert rows[0] == ["| planted accept", "1", "1", "0", "0"]
    assert rows[1] == ["| planted refuse", "1", "0", "1", "0"]
    assert rows[2] == ["| planted key_error", "1", "0", "0", "1"]
    said = capsys.readouterr().out
    assert "FAILED 1: planted key_error: KeyError at planted.py" in said
    kept = planted_run / "failures" / "1"
    assert (kept / "a").read_bytes() == b"x"
    log = (planted_run / "log.jsonl").read_text()
    assert main(call) == 1
    assert (planted_run / "log.jsonl").read_text() == log, "a piece was done twice"
    assert main(["--again", str(kept), "--out", str(planted_run)]) == 1
    assert "planted key_error: failed: KeyError" in capsys.readouterr().out


def test_the_shares_of_a_run_are_as_many_as_asked_for() -> None:
    counts = shares(list(TARGETS), 20_000)
    assert counts.keys() == TARGETS.keys()
    assert 20_000 <= sum(counts.values()) < 20_000 + len(TARGETS)
    assert min(counts.values()) >= 50


def test_failures_with_one_cause_are_of_one_kind() -> None:
    kinds = [
        kind_of(Outcome("failed", detail))
        for detail in (
            "KeyError at a.py:3: 'x'",
            "KeyError at a.py:3: 'y'",
            "nonsense: 3 boxes kept, '7' lost: a",
            "nonsense: 4 boxes kept, '9' lost: a",
        )
    ]
    assert kinds[0] == kinds[1] != kinds[2] == kinds[3]


def test_a_run_needs_its_own_folder(planted_run: Path) -> None:
    run = Run(planted_run, said=False)
    assert run.seeds.is_dir()
    assert not run.has_failed
    with Reader(run.seeds, planted_run / "work") as reader, pytest.raises(KeyError):
        run.do(reader, "no such target", 0)


def test_strategies_make_the_same_inputs_in_each_run(tmp_path: Path) -> None:
    def made() -> list[bytes]:
        found = []

        @_quick(20)
        @given(st.data())
        def look(data: st.DataObject) -> None:
            found.append(data.draw(json_files(DOCUMENT)))

        look()
        return found

    assert made() == made()
