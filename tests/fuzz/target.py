"""What a target is: how its inputs are made, and how one of them is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy


class Files(dict[str, bytes]):
    """An input: the content of each file, by its name in the input's folder."""

    def __repr__(self) -> str:
        """Short: Hypothesis prints the input that fails, which may hold megabytes."""
        return repr(
            {name: content if len(content) < 3000 else f"{len(content)} bytes" for name, content in self.items()}
        )


class Nonsense(AssertionError):
    """An input that was accepted and read wrongly."""


@dataclass(frozen=True)
class Target:
    """A reader of untrusted input."""

    inputs: Callable[[Path], SearchStrategy[dict[str, bytes]]]  # takes the folder of the valid inputs
    # Reads the input in a folder; takes that folder and the one of the valid inputs. Raises UserError where it refuses
    # the input, and Nonsense where what it read is wrong.
    read: Callable[[Path, Path], object]
    weight: float = 1.0  # its part of a long run's inputs
    examples: int = 25  # in the test suite
    libraries: tuple[str, ...] = ()  # that an input may need and its first one need not, to be imported before
    may_print: bool = False  # whether a library prints lines of its own, which nothing turns off


def require(holds: bool, message: str) -> None:
    """Raise Nonsense unless a property of what was read holds."""
    if not holds:
        raise Nonsense(message)
