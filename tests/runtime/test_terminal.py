"""Foreign texts on a terminal: shown, not obeyed; and any text on a terminal of any encoding."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from runtime.errors import UserError
from runtime.terminal import guard_output, own_codes, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("", ""),
        ("größe 猫 😀 قطة", "größe 猫 😀 قطة"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("two\nlines\r\tand\x0bmore\u2028", "two\\nlines\\r\\tand\\x0bmore\\u2028"),
        ("\x9b31m\x7f\x00", "\\x9b31m\\x7f\\x00"),
        ("\u202egpj.exe\u2066\u200f", "\\u202egpj.exe\\u2066\\u200f"),
        ("caf\udce9.jpg", "caf\\udce9.jpg"),
        (Path("a/b\n"), "a/b\\n"),
    ],
)
def test_a_name_in_a_message(name: object, shown: str) -> None:
    assert printable(name) == shown


def guarded(write) -> str:
    """What reaches a UTF-8 stdout."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with guard_output():
            write()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_output_is_escaped_but_for_lines_and_bars() -> None:
    assert guarded(lambda: print("a\tb\nc \x1b[31m\u202e \udce9")) == "a\tb\nc \\x1b[31m\\u202e \\udce9\n"
    assert guarded(lambda: print("100 %\rhidden")) == "100 %\\rhidden\n"
    assert guarded(lambda: sys.stdout.write("\x1b[A\x1b[31m")) == "\\x1b[A\\x1b[31m"
    assert guarded(lambda: sys.stdout.writelines(["a\n", "\x1b"])) == "a\n\\x1b"

    def bars() -> None:
        for _ in tqdm(range(2), desc="outer\x1b[2J", file=sys.stdout, ascii=True):
            for _ in tqdm(range(2), file=sys.stdout, ascii=True):
                pass

    shown = guarded(bars)
    assert "\r" in shown
    assert "\x1b[A" in shown, "inner bars move up"
    assert "\\x1b[2J" in shown
    assert "\x1b[2J" not in shown


def test_a_library_may_colour_its_own_texts() -> None:
    def coloured() -> None:
        with own_codes():
            print("\x1b[1mbold\x1b[0m")
        print("\x1b")

    assert guarded(coloured) == "\x1b[1mbold\x1b[0m\n\\x1b\n"


def test_streams_come_back() -> None:
    before = sys.stdout, sys.stderr
    with guard_output(), guard_output():
        assert sys.stdout is not before[0]
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_any_text_in_any_encoding(encoding: str, repository: Path) -> None:
    code = (
        "import sys; from runtime.errors import UserError, run_main\n"
        "def main():\n"
        "    print('→ 猫 \\udce9', flush=True)\n"
        "    raise UserError('größe × 猫 \\udce9 \\x1b[31m')\n"
        "run_main(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={"PYTHONIOENCODING": encoding, "PATH": "", "PYTHONPATH": str(repository)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    said = done.stderr.decode(encoding)
    assert said.startswith("error: gr")
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert "\\udce9" in done.stdout.decode(encoding)


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=["stdout", "stderr", "all"])
@pytest.mark.parametrize("raised", [None, UserError("no")], ids=["works", "fails"])
def test_a_command_whose_streams_are_closed_ends_as_usual(
    tmp_path: Path, closed: tuple[int, ...], raised: UserError | None
) -> None:
    script = tmp_path / "command.py"
    script.write_text(
        "import os, sys\n"
        "from runtime.errors import UserError, run_main\n"
        "def main():\n"
        f"    with open({str(tmp_path / 'result')!r}, 'w') as file:\n"
        "        assert file.fileno() > 2, 'a library prints there'\n"
        "        print('said')\n"
        "        print('warned', file=sys.stderr)\n"
        "        file.write(str(file.fileno()))\n"
        f"    {'pass' if raised is None else 'raise UserError(str(0))'}\n"
        "run_main(main)\n"
    )
    shell = " ".join(f"{number}>&-" if number else "<&-" for number in closed)
    found = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {shell}', sys.executable, script], capture_output=True, check=False
    )
    assert found.returncode == (0 if raised is None else 2), found.stderr
    assert b"Traceback" not in found.stderr
    assert int((tmp_path / "result").read_text()) > 2
