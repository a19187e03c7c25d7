"""Commands that messages advise run wherever the packages are installed, not in a clone's root alone."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import command_names as commands

ROOT = Path(__file__).parent.parent
PACKAGES = ("train", "export", "runtime")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
COMMANDS = [value for name, value in vars(commands).items() if name.isupper() and isinstance(value, str)]
SCRIPT = re.compile(r"\b(?:scripts|export|train|runtime)/\w+\.(?:py|sh)\b")
MODULE = re.compile(r"\bpython -m ((?:train|export|runtime)(?:\.\w+)*)")


def texts(source: str) -> list[str]:
    """Every string of a module: messages, help and the usage in docstrings."""
    return [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def paths_advised(source: str) -> list[str]:
    """Strings that name a file to run; a docstring may name a file for its readers, without `python`."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
    return [
        text
        for text in texts(source)
        if any(text not in docstrings or "python " in text[: found.start()][-7:] for found in SCRIPT.finditer(text))
    ]


def modules_advised(source: str) -> set[str]:
    return {name for text in texts(source) for name in MODULE.findall(text)}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("", 0),
        ('raise UserError(f"{path}: build it again: python export/to_trt.py {path}")', 1),
        ('"""    python export/to_onnx.py best.pt"""', 1),
        ('advice = "run scripts/setup.sh"', 1),
        ('"""As export/to_onnx.py does."""', 0),
        ("x = 1  # as export/to_onnx.py does", 0),
        ('advice = "python -m export.to_trt model.onnx"', 0),
    ],
)
def test_a_path_is_found(line: str, wrong: int) -> None:
    assert len(paths_advised(line)) == wrong


def test_no_message_advises_a_path_inside_a_clone() -> None:
    found = {path: paths_advised(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert len(found) > 100
    assert {path: texts for path, texts in found.items() if texts} == {}


def test_every_module_that_is_advised_is_there() -> None:
    advised = set().union(*(modules_advised(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert {"export.to_onnx", "export.to_trt", "export.quantize", "train", "train.shapes"} <= advised
    assert modules_advised('"python -m export.no_such x"') == {"export.no_such"}
    for name in advised:
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_advised_commands_run_in_another_folder(command: str, tmp_path: Path) -> None:
    words = command.split()
    assert words[:2] == ["python", "-m"]
    ran = subprocess.run(
        [sys.executable, *words[1:], "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"usage: {command} ")
