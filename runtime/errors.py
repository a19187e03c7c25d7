"""Errors that the user can fix, and the one place that turns errors into exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from . import interrupts
from .terminal import complete_streams, guard_output

MOST_CHARACTERS = 1800  # of an error's line
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class UserError(Exception):
    """An error that the user can fix. The message says what was given, what was expected and what to do."""


def describe_os_error(error: OSError) -> str:
    """One line for an OSError: the path, if the error has one, and the reason."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's main function and leave the process with its exit code.

    A UserError, an OSError (full disk, unwritable folder) and a MemoryError become one line `error: …` on stderr and
    exit code 2, a signal its own line and exit code (`interrupts`). Any other exception is a bug of this toolkit and
    keeps its traceback. What is printed meanwhile is safe for the terminal (`terminal.guard_output`).
    """
    complete_streams()
    try:
        with guard_output(), interrupts.raise_interrupts():
            code = _exit_code(main)
    except interrupts.Interrupted as error:  # it came between the work and its end
        code = _interrupted(error)
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        code = main() or 0
        sys.stdout.flush()  # a full disk behind a redirected stdout shows only here
        return code
    except UserError as error:
        return _report(str(error))
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python flushes stdout once more at exit, which must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return _report(describe_os_error(error))
    except MemoryError as error:
        return _report(f"out of memory ({error}); try a smaller batch or smaller images")
    except (Exception, KeyboardInterrupt) as error:
        if interrupts.exit_of(error) is None:
            raise
        return _interrupted(error)


def _interrupted(error: BaseException) -> int:
    line, code = interrupts.exit_of(error) or ("interrupted", EXIT_INTERRUPTED)
    with contextlib.suppress(OSError):  # after SIGHUP there may be no terminal
        print(line, file=sys.stderr)
    interrupts.end_children()
    return code


def _report(message: str) -> int:
    line = " ".join(message.splitlines())
    # A long line repeats a value of a damaged file; what is wrong and what to do stand around it.
    if len(line) > MOST_CHARACTERS:
        line = f"{line[: MOST_CHARACTERS * 2 // 3]} … {line[-MOST_CHARACTERS // 4 :]}"
    print("error: " + line, file=sys.stderr)
    return EXIT_BAD_INPUT
