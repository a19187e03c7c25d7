"""The code blocks of the documentation, and what each of their commands is: something to run, or something to check.

A comment before a block says how it is tested: `<!-- only parsed: REASON -->` for commands that need a GPU, a download
or hours, `<!-- only compiled: REASON -->` for Python, `<!-- slow -->` for the slow tests. Without one, it is run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.cli import COMMANDS

LANGUAGES = {"bash", "python", "text"}
MARK = re.compile(r"<!-- (only parsed|only compiled|slow)(?:: (\w.*))? -->$")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*$")
PYTHONS = {"python", ".venv/bin/python"}
SCRIPTS = {  # that hand everything on
    "scripts/train.sh": "train",
    "scripts/reproduce.sh": "train.reproduce",
    "scripts/fuzz.sh": "tests.fuzz.run",
}
EXACT = {
    ("source", ".venv/bin/activate"),
    ("scripts/quickstart.sh",),
    ("scripts/triton_test.sh",),
    ("scripts/check.sh",),
    ("scripts/check.sh", "--fix"),
    ("scripts/test.sh",),
    ("scripts/test.sh", "-m", "slow"),
    ("scripts/test.sh", "-m", "gpu"),
    ("mkdocs", "serve"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    where: str  # page:line
    language: str
    text: str
    mark: str = ""  # one of MARK's, or empty: to be run


@dataclass(frozen=True)
class Program:
    """A Python program with its arguments: a module, or a script's path inside the repository."""

    name: str
    arguments: tuple[str, ...]


def blocks(page: Path, name: str) -> list[Block]:
    """The blocks of a page. Raises AssertionError for an unknown language or a mark without a reason."""
    found: list[Block] = []
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            language, where = line.removeprefix("```"), f"{name}:{number}"
            assert language in LANGUAGES, f"{where}: a block of {language!r}; expected one of {sorted(LANGUAGES)}"
            text = "\n".join(_until_fence(lines))
            found.append(Block(where, language, text, _mark(before, where)))
        before = line
    return found


def _until_fence(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    for _, line in lines:
        if line.startswith("```"):
            return
        yield line
    raise AssertionError("a block without an end")


def _mark(line: str, where: str) -> str:
    if not line.startswith("<!--"):
        return ""
    found = MARK.match(line)
    assert found is not None, f"{where}: {line}: expected {MARK.pattern}"
    assert found[1] == "slow" or found[2], f"{where}: {found[1]!r} without a reason"
    return found[1]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as words; comments and environment variables are left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and ASSIGNMENT.match(words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def program(words: list[str], root: Path, extras: dict[str, Any]) -> Program | None:
    """The program that a command runs; None for a command that is correct and has none.

    Raises AssertionError for a command that is neither.
    """
    line = shlex.join(words)
    if tuple(words) in EXACT:
        assert words[0].startswith(("source", "mkdocs")) or (root / words[0]).is_file(), f"{line}: no such script"
        return None
    match words:
        case ["scripts/setup.sh", *asked]:
            assert set(asked) <= set(extras), f"{line}: pyproject.toml has no extra {set(asked) - set(extras)}"
            return None
        case ["pip", "install", *asked]:
            _check_requirements(asked, extras, line)
            return None
        case ["atss", *arguments]:
            assert not arguments or arguments[0] in COMMANDS or arguments[0].startswith("-"), f"{line}: no such command"
            return Program("runtime.cli", tuple(arguments))
        case [python, "-m", module, *arguments] if python in PYTHONS:
            assert module in {command.module for command in COMMANDS.values()}, f"{line}: not a command"
            return Program(module, tuple(arguments))
        case [python, script, *arguments] if python in PYTHONS and script.endswith(".py"):
            assert (root / script).is_file(), f"{line}: no such script"
            return Program(str(root / script), tuple(arguments))
        case ["torchrun", *arguments]:
            return Program("torch.distributed.run", tuple(arguments))
        case [script, *arguments] if script in SCRIPTS:
            return Program(SCRIPTS[script], tuple(arguments))
    raise AssertionError(f"{line}: neither a command that can be run nor one that can be checked")


def _check_requirements(asked: list[str], extras: dict[str, Any], line: str) -> None:
    """What pip is to install is this repository, with extras that it has, or a plain requirement."""
    for requirement in asked:
        if requirement == "-e":
            continue
        found = re.fullmatch(r"(\.|[\w.-]+)(?:\[([\w,]+)\])?((?:[<>=!~]=?[\w.]+,?)*)", requirement)
        assert found is not None, f"{line}: {requirement!r} is no requirement"
        if found[1] in (".", "atss-toolkit") and found[2]:
            assert set(found[2].split(",")) <= set(extras), f"{line}: pyproject.toml has no such extra"
