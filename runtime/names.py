"""The error for a setting that must be one of a fixed set of names and is not."""

from __future__ import annotations

from typing import Any, NoReturn, get_args

from .errors import UserError


def unknown_name(given: NoReturn, setting: str, names: Any) -> NoReturn:
    """Raise UserError as the last case of a `match` over the Literal `names`.

    A type checker rejects the call if the `match` lacks a case, because `given` then still has a value.
    """
    raise UserError(f"{setting} is {given!r}, expected {' or '.join(repr(name) for name in get_args(names))}")
