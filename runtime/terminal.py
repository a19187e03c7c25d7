"""Text on its way to a terminal: what a foreign name holds can neither command the terminal nor break a table.

Two guards. `printable` is for a name inside a message: it escapes control characters, line ends included.
`guard_output` is for a whole command: it escapes what no line of ours holds (escape codes, marks that turn the writing
direction), and it makes every character printable where the terminal's encoding lacks it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# Control characters, marks of the writing direction, and what separates lines for some programs. A lone surrogate is a
# byte of a file name that isn't UTF-8.
_NOT_SHOWN = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_A_LINE = re.compile(f"[{_NOT_SHOWN}\t\n\r]")
_IN_OUTPUT = re.compile(f"[{_NOT_SHOWN}]|\r(?!\n)")
_OF_A_BAR = re.compile("\r|(?:\n|\x1b\\[A)+\\Z")  # how tqdm begins a line, and how it moves between lines


def printable(name: object) -> str:
    r"""The text of `name` in one line, control characters as Python escapes them: "\x1b", "\n", "\u202e".

    A byte that isn't UTF-8 in a file name becomes "\udcXX".
    """
    return _IN_A_LINE.sub(_escaped, str(name))


@contextlib.contextmanager
def guard_output() -> Iterator[None]:
    """While the block runs, stdout and stderr take any text; see the module's text. Bars may return to their line."""
    os.environ.setdefault("PYTHON_COLORS", "0")  # argparse has coloured its texts since Python 3.14
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if stream is None else _guarded(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def complete_streams() -> None:
    """Connect the standard streams that the caller closed (`>&-`) to the null device.

    Python has None for such a stream. A file that is opened later would get the stream's number, and what libraries
    print would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # it stays open


@contextlib.contextmanager
def own_codes() -> Iterator[None]:
    """While the block runs, stdout and stderr take escape codes: for a library that colours its own texts."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (getattr(stream, "unguarded", stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _guarded(stream: TextIO) -> Any:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream if isinstance(stream, _Guarded) else _Guarded(stream)


class _Guarded:
    """A stream that escapes what is written to it. Everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str) -> int:
        began = _OF_A_BAR.match(text)
        begin = began.end() if began is not None else 0
        self.unguarded.write(text[:begin] + _IN_OUTPUT.sub(_escaped, text[begin:]))
        return len(text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.unguarded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
