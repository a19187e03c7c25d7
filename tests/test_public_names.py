"""Tests use what a module offers: a test that reaches for a private name freezes how the code is written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGES = ("runtime", "train", "export", "benchmarks", "tests")
# Private in spelling only: the public methods of named tuples, and `os._exit`.
NOT_PRIVATE = frozenset({"_replace", "_asdict", "_fields", "_exit"})


def private_names(source: str) -> list[str]:
    """The private names that a test's source imports, reads or replaces, each with its line."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] in PACKAGES):
            found |= {(node.lineno, alias.name) for alias in node.names if _is_private(alias.name)}
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
                found.add((node.lineno, node.attr))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found |= {(node.lineno, name) for name in names if _is_private(name.rpartition(".")[2])}
    return [f"{line}: {name}" for line, name in sorted(found)]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NOT_PRIVATE


def test_no_test_reaches_for_a_private_name(repository: Path) -> None:
    support = repository / "tests" / "support"  # a stand-in's modules are one piece of code
    files = [path for path in sorted((repository / "tests").rglob("*.py")) if support not in path.parents]
    found = {str(path.relative_to(repository)): private_names(path.read_text(encoding="utf-8")) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", []),
        ("from runtime.images.preprocess import load, _round_up", ["1: _round_up"]),
        ("from .fakes import _hidden", ["1: _hidden"]),
        ("from runtime.images import preprocess\npreprocess._round_up((1, 1), 32)", ["2: _round_up"]),
        ("detector._backend.close()", ["1: _backend"]),
        ("monkeypatch.setattr(engine, '_names', set())", ["1: _names"]),
        ("monkeypatch.setattr('runtime.backends._open', None)", ["1: runtime.backends._open"]),
        ("class Fake:\n    def close(self):\n        self._is_open = False", []),
        ("row = row._replace(score=0.5)", []),
        ("module.__name__", []),
    ],
)
def test_a_private_name_is_found(source: str, expected: list[str]) -> None:
    assert private_names(source) == expected
