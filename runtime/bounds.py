"""Bounds of values, declared beside their types and checked wherever a value enters: records, options, arguments.

    steps: Annotated[int, Bounds(1, 10**9)] = 90_000

`records.py` checks the annotations of a record's fields, and `argument` makes a type of argparse of them. A record adds
what holds between its fields with a method `conflicts`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Protocol, runtime_checkable


@runtime_checkable
class Constraint(Protocol):
    """What a value must fulfil beside its type."""

    @property
    def expected(self) -> str:
        """The values that fulfil it, as a phrase behind "expected"."""
        ...

    def holds(self, value: Any) -> bool:
        """Whether a value of the right type fulfils it."""
        ...


@runtime_checkable
class Conflicts(Protocol):
    """A record with conditions between its fields."""

    def conflicts(self) -> Iterable[tuple[str, str]]:
        """For each condition that doesn't hold: the name of a field, and what is expected of it."""
        ...


@dataclass(frozen=True)
class Bounds:
    """A number from `least` to `most`, which may be excluded, or a multiple of a number; NaN and inf never hold.

    Every number has both bounds: what is written in a file or on a command line may have hundreds of digits.
    """

    least: float
    most: float
    above: bool = False  # `least` itself is excluded
    below: bool = False  # `most` itself is excluded
    multiple_of: int = 1  # of whole numbers

    @property
    def expected(self) -> str:
        """See `Constraint`."""
        least = f"{'more than ' if self.above else 'at least '}{_digits(self.least)}"
        most = f"{'less than ' if self.below else 'at most '}{_digits(self.most)}"
        multiple = f"a multiple of {self.multiple_of}, " if self.multiple_of > 1 else ""
        return f"{multiple}{least} and {most}"

    def holds(self, value: Any) -> bool:
        """See `Constraint`."""
        over = self.least < value if self.above else self.least <= value
        under = value < self.most if self.below else value <= self.most
        return over and under and (self.multiple_of == 1 or value % self.multiple_of == 0)


@dataclass(frozen=True)
class Text:
    """A text of at least one character and at most `most`, without control characters, that UTF-8 can encode."""

    most: int = 1000

    @property
    def expected(self) -> str:
        """See `Constraint`."""
        return f"a text of 1 to {self.most} characters, without control characters"

    def holds(self, value: Any) -> bool:
        """See `Constraint`."""
        return 0 < len(value) <= self.most and not CONTROL.search(value)


@dataclass(frozen=True)
class Pattern:
    """A text that a regular expression describes as a whole; `expected` describes it for people."""

    pattern: str
    expected: str

    def holds(self, value: Any) -> bool:
        """See `Constraint`."""
        return re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True)
class Items:
    """A list of `least` to `most` items, which may have to be distinct or to rise."""

    least: int = 0
    most: int = 1_000_000
    distinct: bool = False
    rising: bool = False

    @property
    def expected(self) -> str:
        """See `Constraint`."""
        kind = "rising values" if self.rising else "distinct values" if self.distinct else "values"
        return f"{self.least} to {self.most} {kind}" if self.least else f"at most {self.most} {kind}"

    def holds(self, value: Any) -> bool:
        """See `Constraint`."""
        if not self.least <= len(value) <= self.most:
            return False
        if self.rising:
            return all(one < following for one, following in pairwise(value))
        return not self.distinct or len(set(value)) == len(value)


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # with lone surrogates, which UTF-8 can't encode

# Values that many records and commands have.
Count = Annotated[int, Bounds(0, 10**9)]
Positive = Annotated[int, Bounds(1, 10**9)]
Side = Annotated[int, Bounds(1, 2**14)]  # px, of an image or canvas
Batch = Annotated[int, Bounds(1, 2**16)]
Id = Annotated[int, Bounds(-(2**63), 2**63 - 1)]
Seed = Annotated[int, Bounds(0, 2**62)]
Fraction = Annotated[float, Bounds(0, 1)]
Seconds = Annotated[float, Bounds(0, 1e9)]
Megapixels = Annotated[float, Bounds(1e-6, 1e6)]
Milliseconds = Annotated[float, Bounds(0, 1e7)]
Name = Annotated[str, Text()]
PathText = Annotated[str, Pattern("(?s)[^\0]*", "a path")]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "a SHA-256, 64 hexadecimal digits")]


def argument(kind: Any) -> Callable[[str], Any]:
    """The type of a numeric option of argparse, from a type with bounds such as `Count`.

    Its errors name what was given and what is expected; argparse puts the option's name before them.
    """
    return _Argument(kind.__origin__, bounds_of(kind))


def bounds_of(kind: Any) -> Constraint:
    """The first constraint of a type such as `Count`."""
    return next(one for one in kind.__metadata__ if isinstance(one, Constraint))


@dataclass(frozen=True)
class _Argument:
    kind: type
    bounds: Constraint

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except (ValueError, OverflowError):
            value = math.nan
        if not self.bounds.holds(value):
            what = "a whole number: " if self.kind is int else ""
            raise argparse.ArgumentTypeError(f"{shortened(text)}: expected {what}{self.bounds.expected}")
        return value


def shortened(text: str, most: int = 60) -> str:
    """A text of at most `most` characters, cut where it is longer: a number may have hundreds of digits."""
    return text if len(text) <= most else text[: most - 2] + " …"


def _digits(bound: float) -> str:
    """A bound as people write it."""
    return str(bound) if isinstance(bound, int) and abs(bound) < 10**7 else f"{bound:g}"
