"""Ids of images and categories: anything that a file uses as an id gets an integer of 64 bits, and is found by value.

COCO's own ids are small integers and stay as they are. Tools also write texts ("scene-1"), numbers as texts ("17"),
whole floats (17.0, pandas) and integers of 64 unsigned bits (hashes).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .values import CocoError, shown

MOST = 2**63  # absolute values of ids stay below
NO_ID = -MOST  # stands in a column where there is no id; no entry can have it
_WHOLE = re.compile(r"[+-]?[0-9]{1,4000}(\.0*)?")


def key_of(value: Any) -> int | float | str | None:
    """What two equal ids have in common: 3.0 is 3, but "3" is another key. None for what can't be an id."""
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    return None


def whole_number(value: Any) -> int | None:
    """The integer that a JSON value means: 3, 3.0, "3", "003" and "3.0" are 3. None for all else, true too."""
    if isinstance(value, str):
        text = value.strip()
        return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None
    key = key_of(value)
    return key if type(key) is int else None


class IdTable:
    """The ids of a file's images or categories.

    Where all of them mean distinct integers of 64 signed bits, these integers are `ids`. Otherwise the entries are
    numbered from 1: by rising id where all are integers, else in the file's order. The numbers follow from the ids as
    written, so that a table made anew from `written` has the same.
    """

    def __init__(self, written: Sequence[Any], where: str) -> None:
        """Number the ids of a list's entries; `where` begins the text of a CocoError.

        Raises CocoError for an entry without an id, for two entries with the same id, and where a number and a text
        are the same id (1 and "1").
        """
        self._written = written
        self.numbered = False  # whether `ids` are other numbers than the written ids
        self.written: Sequence[Any] | None = None  # by entry, as in the file; None: as `ids`
        if all(type(value) is int and -MOST < value < MOST for value in written):
            self.ids = np.array(written, np.int64)
            if len(np.unique(self.ids)) < len(self.ids):
                _require_distinct(written, where)
            return
        keys = [key_of(value) for value in written]
        if None in keys:
            place = keys.index(None)
            raise CocoError(
                f"{where}: entry {place + 1} has id {shown(written[place])}, expected a number or a text; give every "
                "entry an id of its own"
            )
        _require_distinct(keys, where)
        numbers = [whole_number(key) for key in keys]
        _require_one_type(keys, numbers, where)
        known = [number for number in numbers if number is not None and -MOST < number < MOST]
        self.numbered = len(known) < len(keys) or len(set(known)) < len(keys)
        if not self.numbered:
            self.ids = np.array(known, np.int64)
        elif all(type(key) is int for key in keys):
            self.ids = np.empty(len(keys), np.int64)
            self.ids[sorted(range(len(keys)), key=lambda place: keys[place])] = np.arange(1, len(keys) + 1)  # type: ignore[arg-type,return-value]
        else:
            self.ids = np.arange(1, len(keys) + 1)
        if self.numbered or any(type(key) is not int for key in keys):
            self.written = tuple(written)

    @cached_property
    def _by_key(self) -> dict[Any, int]:
        return {key_of(value): number for value, number in zip(self._written, self.ids.tolist(), strict=True)}

    @cached_property
    def _by_number(self) -> dict[int, int]:
        """By the integers that the ids mean; without those that two entries share ("1" and "01")."""
        numbers = [whole_number(value) for value in self._written]
        counts = Counter(numbers)
        pairs = zip(numbers, self.ids.tolist(), strict=True)
        return {number: given for number, given in pairs if number is not None and counts[number] == 1}

    def find(self, value: Any) -> int | None:
        """The number in `ids` of the entry that `value` refers to: by value, where one is a text and one a number."""
        key = key_of(value)
        if key is None or (found := self._by_key.get(key)) is not None:
            return None if key is None else found
        number = whole_number(key)
        return None if number is None else self._by_number.get(number)

    def find_all(self, column: np.ndarray) -> np.ndarray:
        """The numbers of `ids` for integers as written, int64 [n]; NO_ID for unknown ones."""
        if not self.numbered:
            return column
        values, places = np.unique(column, return_inverse=True)
        found = [self.find(value) for value in values.tolist()]
        return np.array([NO_ID if one is None else one for one in found], np.int64)[places]


def _require_distinct(keys: Sequence[Any], where: str) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise CocoError(
            f"{where}: id {shown(twice[0])} occurs more than once ({len(twice)} such ids); ids must be distinct"
        )


def _require_one_type(keys: Sequence[Any], numbers: Sequence[int | None], where: str) -> None:
    """Raise CocoError where a number and a text are the same id."""
    texts = {number: key for key, number in zip(keys, numbers, strict=True) if isinstance(key, str)}
    for key in keys:
        if type(key) is int and key in texts:
            raise CocoError(
                f"{where}: ids {shown(key)} and {shown(texts[key])} both occur, a number and a text of one value; "
                "give every entry an id of its own"
            )
