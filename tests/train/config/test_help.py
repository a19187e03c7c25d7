"""Every option has a text of its own in the help, which is read from the comments at the records' fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from train import __main__ as training
from train import show_batch

BORDER = re.compile(r"\s*(?:[╭╰]|[─-]{9}|$)")
HEADER = re.compile(r"(--\w[\w.-]*)")


def help_texts(parse: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The text of each option, without its default, as the help shows it."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        parse()
    assert caught.value.code == 0
    texts: dict[str, str] = {}
    current = ""
    for line in capsys.readouterr().out.splitlines():
        inside = line.strip("│").rstrip()  # on a terminal there are boxes, elsewhere spaces
        if BORDER.match(inside):
            current = ""
        elif inside.startswith((" -", "  -")) and (found := HEADER.search(inside)):
            current = found[1]
            texts[current] = ""
        elif current and inside.startswith("      "):
            texts[current] = f"{texts[current]} {inside.strip()}".strip()
    return {name: re.sub(r" ?\((default: .*|required)\)$", "", text) for name, text in texts.items()}


def faults(texts: dict[str, str]) -> list[str]:
    """The options without a text, and those that have another option's."""
    owner: dict[str, str] = {}
    found = []
    for name, text in texts.items():
        if len(text.split()) < 2:
            found.append(f"{name} has no text: {text!r}")
        elif text in owner:
            found.append(f"{name} has the text of {owner[text]}: {text!r}")
        owner.setdefault(text, name)
    return found


@pytest.mark.parametrize("command", [training, show_batch], ids=["train", "show-batch"])
def test_every_option_has_a_text_of_its_own(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = help_texts(lambda: command.parse(["atss_tiny", "--help"]), monkeypatch, capsys)
    assert len(texts) > 90, "the help is read"
    assert "multiples" in texts["--preprocess.size-divisor"]
    assert "multiples" not in texts["--preprocess.pad-value"]
    assert faults(texts) == []


def test_planted_faults_are_found() -> None:
    texts = {"--a": "a text", "--b": "another text", "--c": "a text", "--d": ""}
    assert [line.split(":")[0] for line in faults(texts)] == ["--c has the text of --a", "--d has no text"]
