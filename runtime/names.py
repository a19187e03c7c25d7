"""Settings that are one of a fixed set of names: what becomes of a name that is none of them."""

from __future__ import annotations

from typing import Any, NoReturn, get_args

from .errors import UserError


def unknown_name(given: NoReturn, setting: str, names: Any) -> NoReturn:
    """Raise UserError: the last case of every `match` over a Literal; `names` is that Literal.

    A type checker refuses the call where a case is missing, since `given` then still has a value.
    """
    raise UserError(f"{setting} is {given!r}, expected {' or '.join(repr(name) for name in get_args(names))}")
