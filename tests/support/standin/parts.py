"""What the driver is made of: memory, operations, streams, events and graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


class StandinError(AssertionError):
    """A rule of CUDA's or TensorRT's was broken."""


class Failure(Exception):
    """A call that was told to fail; each binding reports it in its own way."""


@dataclass(eq=False)
class Allocation:
    """Memory, and who has used it since the host last waited."""

    kind: Literal["device", "pinned", "state"]
    address: int
    data: np.ndarray
    device: int
    is_freed: bool = False
    touched: list[tuple[Operation, int, int, bool]] = field(default_factory=list)  # by whom, from, to, whether written

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Access:
    """The range of an allocation that an operation reads or writes."""

    allocation: Allocation
    start: int
    stop: int
    writes: bool


@dataclass(eq=False)
class Operation:
    """Queued work."""

    name: str
    stream: Stream
    accesses: list[Access] = field(default_factory=list)
    run: Callable[[], None] = lambda: None
    publish: Callable[[], None] = lambda: None  # once the host has waited for it
    seconds: float = 0.0
    check: Callable[[], None] = lambda: None  # when a graph that holds it is launched
    needs: list[Operation] = field(default_factory=list)
    clock: dict[int, int] = field(
        default_factory=dict
    )  # stream → how many of its operations come before this or are it
    ends: float | None = None  # None: has not run


@dataclass(eq=False)
class Stream:
    """A queue of operations that run in order."""

    number: int
    device: int
    last: Operation | None = None
    count: int = 0
    clock: dict[int, int] = field(default_factory=dict)
    needs: list[Operation] = field(default_factory=list)  # of the next operation: what events made it wait for
    waiting: list[Operation] = field(default_factory=list)
    capture: Graph | None = None
    is_blocking: bool = False


@dataclass(eq=False)
class Module:
    """A loaded kernel: the names and bits of its parameters; `last` is its last run."""

    number: int
    device: int
    bits: dict[str, int]
    last: Operation | None = None


@dataclass(eq=False)
class Event:
    """A place in a stream; `marker` is the operation that stands for it."""

    number: int
    device: int
    times: bool
    marker: Operation | None = None


@dataclass(eq=False)
class Graph:
    """Recorded operations."""

    number: int
    thread: int
    is_global: bool
    operations: list[Operation] = field(default_factory=list)
    is_broken: bool = False
