"""A wrong option ends every command with one line that names the nearest one."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from runtime import cli
from runtime.command_parser import CommandParser

FROM_RECIPES = ("train", "show-batch")  # tyro parses their settings, and answers in a box


def parser() -> CommandParser:
    made = CommandParser(prog="atss try")
    made.add_argument("model")
    made.add_argument("--overlap", type=float, help="a share")
    made.add_argument("--merge", choices=["ios", "nms"])
    return made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("m --overlop 0.3", "unrecognized arguments: --overlop 0.3; did you mean --overlap?"),
        ("m --zzz", "unrecognized arguments: --zzz"),
        ("m --overlap x", "argument --overlap: invalid float value: 'x'"),
        ("m --merge iou", "argument --merge: invalid choice: 'iou' (choose from"),
        ("--overlap 0.3", "the following arguments are required: model"),
        ("m \x1b[31m\nx", "unrecognized arguments: \\x1b[31m\\nx"),
    ],
)
def test_an_error_is_one_line(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(given.split(" "))
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {said}")
    assert captured.err.endswith(" (atss try --help lists the options)\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in FROM_RECIPES])
def test_every_command_answers_so(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    module = cli.COMMANDS[name].module
    spec = importlib.util.find_spec(module)
    assert spec is not None
    # runpy warns of a module that is there already.
    run = module if spec.submodule_search_locations is None else f"{module}.__main__"
    monkeypatch.delitem(sys.modules, run, raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.run([name, "--no-such-option"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.endswith(f" (atss {name} --help lists the options)\n")
    assert captured.err.count("\n") == 1
