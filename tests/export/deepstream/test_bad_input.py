"""Options and arguments without sense: one line, and no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.deepstream.write import write_deepstream
from export.to_deepstream import main
from runtime.errors import UserError

from ..conftest import Exported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "17"], "--batch 17: expected a batch that "),
        (["--canvas", "100", "96"], "--canvas 100 96: expected height and width in multiples of 32"),
        (["--images", "no/such/folder"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_no_folder(
    arguments: list[str], message: str, exported: Exported, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message) as raised:
        main([str(exported.model), "-o", str(out), *arguments])
    assert len(str(raised.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--score", "1.5"], ["--frame", "0", "1920"]])
def test_numbers_out_of_bounds(
    arguments: list[str], exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(exported.model), "-o", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert f"argument {arguments[0]}: {arguments[1]}: expected" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "--batch 0: expected a batch that "),
        ({"batch": 17}, "--batch 17: expected a batch that "),
        ({"score": 1.5}, "--score 1.5 .*expected 0 to 1"),
        ({"score": -0.1}, "--score -0.1 .*expected 0 to 1"),
        ({"score": float("nan")}, "--score nan .*expected 0 to 1"),
        ({"frame_hw": (0, 1920)}, "--frame 0 1920: expected .* 2 px or more"),
        ({"frame_hw": (1080, 1)}, "--frame 1080 1: expected .* 2 px or more"),
    ],
    ids=str,
)
def test_numbers_that_the_function_does_not_take(
    wrong: dict[str, Any], message: str, exported: Exported, tmp_path: Path
) -> None:
    """The command's parser refuses most of them before, but Python may call the function itself."""
    with pytest.raises(UserError, match=message):
        write_deepstream(exported.model, tmp_path / "out", **wrong)
    assert list(tmp_path.iterdir()) == []
