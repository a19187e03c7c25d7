"""The log of a run as it is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.training_log import LOG, LogError, read_log

LINES = [{"kind": "train", "step": step, "total": 1.0 / step} for step in (1, 2, 3)]


def written(folder: Path, *texts: str) -> Path:
    (folder / LOG).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return folder / LOG


def test_a_log_that_is_not_there_or_empty_has_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path / LOG) == []
    assert read_log(written(tmp_path)) == []


@pytest.mark.parametrize("length", range(1, len(json.dumps(LINES[2]))))
def test_a_last_line_that_was_cut_short_is_left_out(length: int, tmp_path: Path) -> None:
    path = written(tmp_path, *map(json.dumps, LINES))
    assert read_log(path) == LINES
    whole = path.read_text()
    path.write_text(whole[: -length - 1])
    assert read_log(path) == LINES[:2]


@pytest.mark.parametrize("bad", ["", '{"kind": "train", "st', "[1]", "{}", "\ufffd\ufffd", "7"])
def test_any_other_line_that_is_none_is_named(bad: str, tmp_path: Path) -> None:
    good = [json.dumps(line) for line in LINES]
    with pytest.raises(LogError, match=r"log\.jsonl, line 2: .* is not a line of a log, .* mend or delete") as caught:
        read_log(written(tmp_path, good[0], bad, *good[1:]))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named_too(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"\xff\xfe\n" + json.dumps(LINES[0]).encode())
    with pytest.raises(LogError, match="line 1"):
        read_log(tmp_path / LOG)
