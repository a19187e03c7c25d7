from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import UserError, run_main


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """`run_main` is a process's last act, and leaves its handlers."""
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if number]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(code: str, repository: Path, **options: object) -> subprocess.CompletedProcess[str]:
    script = "from runtime.errors import UserError, run_main\ndef main():\n    " + code + "\nrun_main(main)\n"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=repository, text=True, stderr=subprocess.PIPE, check=False, **options
    )  # type: ignore[call-overload]


def exit_code(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run_main(main)
    return caught.value.code


def raiser(error: BaseException):
    def main() -> int:
        raise error

    return main


def test_success_and_a_returned_code() -> None:
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("bad\nthing"), "error: bad thing\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "error: /x/y: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied"), "error: Permission denied\n"),
        (OSError("odd"), "error: odd\n"),
        (MemoryError("5 GB"), "error: out of memory (5 GB); try a smaller batch or smaller images\n"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(raiser(error)) == 2
    assert capsys.readouterr().err == line


def test_interrupt(capsys: pytest.CaptureFixture) -> None:
    assert exit_code(raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(raiser(ZeroDivisionError()))


def test_a_closed_pipe_is_quiet(repository: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{PRINT_A_LOT}" | head -1; echo ${{PIPESTATUS[0]}}'],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "line 0\n141\n"
    assert done.stderr == ""


PRINT_A_LOT = """
from runtime.errors import run_main
run_main(lambda: [print('line', i) for i in range(100000)] and 0)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout(repository: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run("print('x' * 10)", repository, stdout=full)
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_message_that_repeats_a_long_value_is_cut_in_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError(f"a.json: field 'name' is {'x' * 5000}; write it again")

    with pytest.raises(SystemExit):
        run_main(main)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert len(line) < 2000
    assert line.startswith("error: a.json: field 'name' is xxx")
    assert line.endswith("xxx; write it again\n")
    assert " … " in line
