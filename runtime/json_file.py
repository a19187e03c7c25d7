"""Reads JSON that others wrote. Whatever is wrong with it becomes one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bounds import shortened
from .errors import UserError


class JsonError(UserError):
    """A file or a text that is not JSON."""


def read_json_file(path: str | os.PathLike[str], what: str) -> Any:
    """The parsed content of a file. `what` names it in messages. Raises JsonError, also where it can't be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise JsonError(f"{path}: cannot read the {what}: {error.strerror or error}; check the path") from error
    return parse_json(content, f"{path}: the {what}")


def parse_json(text: str | bytes, what: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that a JSON text is. Bytes are UTF-8, with or without a byte order mark, UTF-16 or UTF-32.

    `pairs` makes the value of an object; by default that is a dict, and a key that occurs twice is an error. Raises
    JsonError, whose text begins with `what`, for anything that isn't JSON: also NaN and Infinity, which only some
    programs write, numbers of thousands of digits, and values nested too deeply to be read.
    """
    try:
        if isinstance(text, str):
            text = text.removeprefix("\ufeff")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=pairs or _distinct)
    except UnicodeDecodeError as error:
        raise JsonError(f"{what} is not JSON: {error.reason} at byte {error.start}, expected UTF-8") from error
    except RecursionError as error:
        raise JsonError(f"{what} is not JSON that can be read: its values are nested too deeply") from error
    except ValueError as error:
        # Python's message about a number of more than 4300 digits advises programmers.
        reason = "a number has too many digits" if "integer string conversion" in str(error) else str(error)
        raise JsonError(f"{what} is not JSON ({reason})") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's pairs as a dict; ValueError where a key occurs twice, because readers choose different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shortened(twice)!r} occurs twice in one object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
