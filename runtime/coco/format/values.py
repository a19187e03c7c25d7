"""JSON files and their numbers, the error of a file in COCO's format, and the counting of its problems."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ...errors import UserError
from .other_layouts import describe_text

LARGEST = 1e30  # of a number, inclusive: an integer up to here is written as a float that is read again
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})(e[+-]?[0-9]{1,4})?", re.IGNORECASE)
# The first bytes of files that are often given in place of JSON.
_OTHER_FILES = (
    (b"\x1f\x8b", "it is compressed with gzip: unpack it"),
    (b"PK\x03\x04", "it is a ZIP archive: unpack it"),
    (b"version https://git-lfs", "it is a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"<", "it is a web page or XML"),
    (b"PAR1", "it is a Parquet file, whose name has to end in .parquet"),
    (b"\x80", "it is a pickle or another binary file"),
    (b"\x93NUMPY", "it is an array of NumPy"),
)
SHOWN = 60  # characters of a value that a message repeats
_HEAD_BYTES = 10_000  # of a file, by which a message says what it is
PROBLEMS_NAMED = 5  # of each kind; further ones are only counted


class CocoError(UserError):
    """Annotations or results do not follow COCO's format."""


def read_json(path: Path, what: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parsed JSON of a file, every object passed through `object_hook`. `what` names it in a CocoError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CocoError(f"{path}: cannot read the {what}: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a NUL in the name, or a surrogate that stands for no byte
        raise CocoError(f"{shown(str(path))}: not a file name ({error})") from error
    head, text = data[:_HEAD_BYTES], [data]
    del data  # the parser decodes the bytes; kept beside the text, they would be a quarter of a large file's memory
    try:
        return json.loads(text.pop(), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        if (other := describe_text(head, path, what, str(error).startswith("Extra data"))) is not None:
            raise CocoError(f"{path}: {other}") from error
        raise CocoError(f"{path}: the {what} are not valid JSON ({error}); {_advice(head, error)}") from error


def _advice(data: bytes, error: Exception) -> str:
    """What a file is that isn't JSON, and what to do, as far as its first bytes and the error say it."""
    if not data.strip():
        return "the file is empty"
    for starts, advice in _OTHER_FILES:
        if data.lstrip().startswith(starts):
            return advice
    if isinstance(error, UnicodeDecodeError):
        return "it is no text file" if b"\0" in data[:1000] else "write it as UTF-8"
    return "the file may be cut short"


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number that a float can hold."""
    return is_number(value) and abs(value) <= LARGEST


class Problems:
    """Counts problems by kind and remembers the names of the first few of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}
        self._why: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a problem of this kind with the thing called `name`."""
        self._counts[kind] += 1
        if self._counts[kind] <= PROBLEMS_NAMED:
            self._named.setdefault(kind, []).append(name)

    def explain(self, kind: str, why: str) -> None:
        """Say this behind the names of a kind, where it occurred."""
        self._why[kind] = why

    def lines(self) -> tuple[str, ...]:
        """A line per kind: how often it occurred, the first names, and its explanation."""
        return tuple(
            f"{count} × {kind}: {', '.join(self._named[kind])}{' …' if count > PROBLEMS_NAMED else ''}"
            + (f" ({self._why[kind]})" if kind in self._why else "")
            for kind, count in self._counts.items()
        )


def is_missing(value: Any) -> bool:
    """Whether a JSON value stands for none at all: null, or NaN, which pandas writes into fields without a value."""
    return value is None or (type(value) is float and value != value)


def number_of(value: Any) -> float | None:
    """The finite number that a JSON value is or that its text says; None for all else, true and false too."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value.strip()) else None
    return float(value) if is_finite(value) else None


def shown(value: Any) -> str:
    """A JSON value in a message: its `repr`, cut where it is long."""
    if type(value) is int and value.bit_length() > 256:
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def some(texts: Sequence[str], most: int = PROBLEMS_NAMED) -> str:
    """The first texts in a message, and how many there are where that is more."""
    return ", ".join(texts[:most]) + (f" … ({len(texts)} in all)" if len(texts) > most else "")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
