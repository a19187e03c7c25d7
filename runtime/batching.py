"""Batches of things that belong together, such as images that share a canvas.

How many images a batch has is decided by `runtime.detector.resolve_batch`; which images of a stream run together, by
`runtime.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key. Keys, and the items of each, stay in the order of `items`."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def cut(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in pieces of `size`, in order; the last piece may be shorter."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def batches_by(items: Iterable[Item], key: Callable[[Item], Key], batch: int) -> list[tuple[Key, Sequence[Item]]]:
    """The items in batches of at most `batch` that share a key, each with its key. Order as in `group_by`."""
    return [(shared, piece) for shared, members in group_by(items, key).items() for piece in cut(members, batch)]
