"""A plugin of pytest for the step `tests`: how each test ended, written as it ends, so that a killed run tells it too.

    python -m pytest -p benchmarks.gpu.outcomes --outcomes FILE …

Each line of FILE is a JSON object: `test` (its name), `ended` (begun, passed, failed, skipped, error; or `finished` for
the whole run) and `text`. Tests that compile come last: they take minutes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

FINISHED, BEGUN = "finished", "begun"


class Outcome(NamedTuple):
    """How a test ended, and the text that says why."""

    test: str
    ended: str
    text: str


def is_slow(name: str) -> bool:
    """Whether a test of this name compiles."""
    return "compil" in name


def read(file: Path) -> list[Outcome]:
    """The outcomes in a file of a run; none where it is missing. A line that is being written is left out."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


class Writer:
    """Writes a line as soon as something ends."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _write(self, nodeid: str, ended: str, text: str = "") -> None:
        outcome = Outcome(nodeid.partition("::")[2] or nodeid, ended, text)
        with open(self._file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(outcome._asdict()) + "\n")

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """Note the test that runs from now on."""
        self._write(nodeid, BEGUN)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test, or what is done before or after it, ended."""
        if report.skipped:
            self._write(report.nodeid, "skipped", _why_skipped(report))
        elif report.failed:
            self._write(report.nodeid, "failed" if report.when == "call" else "error", report.longreprtext)
        elif report.when == "call":
            self._write(report.nodeid, "passed")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be collected, and one that is skipped as a whole."""
        if report.failed:
            self._write(report.nodeid, "error", report.longreprtext)
        elif report.skipped:
            self._write(report.nodeid, "skipped", _why_skipped(report))

    def pytest_sessionfinish(self) -> None:
        """Note that the run came to its end."""
        self._write("", FINISHED)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that names the file."""
    parser.addoption("--outcomes", type=Path, help="write how each test ended to this file, as it ends")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to write, where a file is named."""
    file = config.getoption("--outcomes")
    if file is not None:
        config.pluginmanager.register(Writer(file))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that compile behind the others, whose order stays."""
    items.sort(key=lambda item: is_slow(item.name))


def _why_skipped(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
    return str(reason).removeprefix("Skipped: ")
