"""Tables of parts by name: what becomes of a name that isn't in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from runtime.errors import UserError

Name = TypeVar("Name", bound=str)
Part = TypeVar("Part")


def part_of(table: Mapping[Name, Part], name: Name, setting: str) -> Part:
    """The part that a table has under a name. Raises UserError with the table's names for one that isn't there.

    `setting` is the setting that the name was given for, such as "schedule.decay".
    """
    if name not in table:
        raise UserError(f"{setting} is {name!r}, expected {' or '.join(map(repr, table))}")
    return table[name]
