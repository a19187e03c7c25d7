"""The driver: memory, streams that run late, events, captured graphs, and the rules that they are used by.

Which operation is known to come before which is kept in vector clocks: each stream counts its operations, and each
operation knows how far every other stream had come. The host is one clock of its own: it knows what it has waited for,
and what is queued after that comes after it. Memory remembers who touched it last; an access that doesn't come after a
conflicting one is a race, found when it is queued and not only where the order happens to be bad.

Host memory can't be watched, so: what a copy to the host will overwrite is filled with POISON until the host has waited
for that copy, and what a copy from the host reads is compared, once that has been waited for, with what was there when
it was queued.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np

from .parts import Allocation, Event, Failure, Graph, Module, Operation, StandinError, Stream

Order = Literal["late", "eager", "random"]
POISON = 0xD5  # as float32 −2.9e13, as int32 −707406379
_DEVICE_BASE, _GAP = 0x7F0000000000, 1 << 20


class Driver:
    """`violations` holds every broken rule, raised too: a backend may not swallow one."""

    def __init__(self, order: Order = "random", seed: int = 0, memory: int = 1 << 30, devices: int = 2) -> None:
        self.order, self.random = order, random.Random(seed)
        self.memory, self.devices = memory, devices
        self.pinned_memory = 1 << 30
        self.block = 1  # memory is given in blocks of this many bytes
        self.compute_capability = (8, 6)
        self.cuda_version = 13000  # of the driver, as CUDA writes it; 0: none is loaded
        self.violations: list[str] = []
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}  # name of a call → how many more of it succeed, the rest fail
        self._pauses_at: tuple[str, ...] = ()
        self.has_paused, self.may_go_on = threading.Event(), threading.Event()
        self.lock = threading.RLock()
        self.allocations: dict[int, Allocation] = {}
        self.graveyard: list[Allocation] = []  # freed, still poisoned: found out where somebody writes
        self.handles: dict[int, Stream | Event | Graph | Module] = {}
        self._defaults: dict[int, Stream] = {}
        self.capturing: list[Graph] = []
        self.unpublished: list[Operation] = []
        self.host_clock: dict[int, int] = {}
        self.current = threading.local()
        self.contexts: dict[int, list[int]] = {}  # thread → device before any was pushed, and devices of contexts
        self.retained: dict[int, int] = {}  # device → how often its primary context is retained
        self._numbers = iter(range(16, 1 << 40))
        self._next_address = _DEVICE_BASE

    # Calls ------------------------------------------------------------------------------------------------------------

    def violation(self, text: str) -> StandinError:
        self.violations.append(text)
        return StandinError(text)

    @contextmanager
    def call(self, name: str, forbidden_in_capture: bool = False) -> Iterator[None]:
        """Every call of the API, one at a time; threads change places before it, and some queued work may run."""
        if self.random.random() < 0.05:
            time.sleep(0.0002)
        if name in self._pauses_at:
            self._pauses_at = ()
            self.has_paused.set()
            self.may_go_on.wait(10)
        with self.lock:
            self.calls.append(name)
            if name in self.failing:
                self.failing[name] -= 1
                if self.failing[name] < 0:
                    raise Failure(f"{name} was told to fail")
            mine = [graph for graph in self.capturing if graph.thread == threading.get_ident()]
            if forbidden_in_capture and (mine or any(graph.is_global for graph in self.capturing)):
                for graph in self.capturing:
                    graph.is_broken = True
                raise self.violation(f"{name} while a graph is captured")
            self.run_some()
            yield

    def bus_id(self, device: int) -> str:
        """Where a device lies on the PCI bus: the later ones first, since CUDA orders devices by speed."""
        return f"0000:{0x41 - device:02X}:00.0"

    def device(self) -> int:
        return getattr(self.current, "device", 0)

    def push_context(self, device: int) -> None:
        """Make a device's primary context current in this thread, on top of those that are."""
        self.contexts.setdefault(threading.get_ident(), [self.device()]).append(device)
        self.current.device = device

    def pop_context(self) -> None:
        """Make current what was below this thread's topmost context."""
        pushed = self.contexts[threading.get_ident()]
        pushed.pop()
        self.current.device = pushed[-1]
        if len(pushed) == 1:
            del self.contexts[threading.get_ident()]

    def _here(self, device: int, what: str) -> None:
        if device != self.device():
            raise self.violation(f"{what} belongs to device {device}, but {self.device()} is current")

    def pause(self, *names: str) -> None:
        """The next of these calls sets `has_paused`, and goes on when `may_go_on` is set."""
        self.has_paused.clear()
        self.may_go_on.clear()
        self._pauses_at = names

    def next_number(self) -> int:
        return next(self._numbers)

    # Memory -----------------------------------------------------------------------------------------------------------

    def used(self, kind: str) -> int:
        mine = (a for a in self.allocations.values() if a.kind == kind and a.device == self.device())
        return sum(self._blocks(allocation.size) for allocation in mine)

    def _blocks(self, size: int) -> int:
        return -(-size // self.block) * self.block

    def allocate(self, size: int, kind: Literal["device", "pinned"]) -> Allocation | None:
        """None: out of memory."""
        if size <= 0:
            raise self.violation(f"allocation of {size} bytes")
        if self.used(kind) + self._blocks(size) > (self.memory if kind == "device" else self.pinned_memory):
            return None
        data = np.frombuffer(self.random.randbytes(64) * (size // 64 + 1), np.uint8)[:size].copy()
        address = self._next_address if kind == "device" else data.ctypes.data
        self._next_address += size // _GAP * _GAP + 2 * _GAP
        self.allocations[address] = Allocation(kind, address, data, self.device())
        return self.allocations[address]

    def state(self) -> Allocation:
        """What an operation reads or writes that isn't memory of ours, such as the inside of a context."""
        return Allocation("state", 0, np.zeros(1, np.uint8), self.device())

    def free(self, address: int, kind: str) -> None:
        allocation = self.allocations.get(address)
        if allocation is None or allocation.kind != kind:
            freed = any(old.address == address for old in self.graveyard)
            raise self.violation(f"free of {kind} memory {'twice' if freed else 'that was never allocated'}")
        self._here(allocation.device, "memory to free")
        for operation, *_ in allocation.touched:
            if not self.host_knows(operation):
                raise self.violation(f"{kind} memory is freed while {operation.name} may use it")
        del self.allocations[address]
        allocation.is_freed = True
        allocation.data.fill(POISON)
        self.graveyard.append(allocation)

    def holder(self, address: int) -> Allocation | None:
        """The live allocation that an address lies in, of any kind and device."""
        inside = (a for a in self.allocations.values() if 0 <= address - a.address < a.size)
        return next(inside, None)

    def find(self, address: int, size: int, kind: str, what: str) -> tuple[Allocation, int]:
        """The live allocation that holds a range, and the offset in it."""
        for allocation in self.allocations.values():
            offset = address - allocation.address
            if 0 <= offset < allocation.size:
                if allocation.kind != kind:
                    raise self.violation(f"{what}: {allocation.kind} memory, expected {kind}")
                if offset + size > allocation.size:
                    raise self.violation(f"{what}: {size} bytes at {offset} of a buffer of {allocation.size}")
                self._here(allocation.device, what)
                return allocation, offset
        if any(0 <= address - old.address < old.size for old in self.graveyard):
            raise self.violation(f"{what}: memory that was freed")
        raise self.violation(f"{what}: {'pageable host' if kind == 'pinned' else 'unknown device'} memory")

    # Handles ----------------------------------------------------------------------------------------------------------

    def create_stream(self, is_blocking: bool = False) -> Stream:
        """A blocking one is a producer's: CUDA's default stream waits for its work."""
        stream = Stream(self.next_number(), self.device(), is_blocking=is_blocking)
        self.handles[stream.number] = stream
        return stream

    def create_event(self, times: bool) -> Event:
        event = Event(self.next_number(), self.device(), times)
        self.handles[event.number] = event
        return event

    def stream(self, number: int) -> Stream:
        if number in (0, 1, 2):  # the legacy and the per-thread default stream; ours begin at 16
            raise self.violation("work on the default stream")
        stream = self.handles.get(number)
        if not isinstance(stream, Stream):
            raise self.violation("a stream that doesn't exist, or not any more")
        self._here(stream.device, "the stream")
        return stream

    def recorded_on(self, number: int) -> Stream:
        """The stream to record an event on: any, or CUDA's default stream, which comes after all blocking ones."""
        if number not in (1, 2):
            return self.stream(number)
        stream = self._defaults.setdefault(number, Stream(number, self.device()))
        for other in self.handles.values():
            if isinstance(other, Stream) and other.is_blocking and other.last is not None:
                stream.needs.append(other.last)
                stream.clock = merged(stream.clock, other.last.clock)
        return stream

    def synchronize_device(self) -> None:
        """The host waits for all work of the current device."""
        for stream in self.handles.values():
            if isinstance(stream, Stream) and stream.device == self.device() and stream.last is not None:
                self.wait_for(stream.last)

    def event(self, number: int) -> Event:
        event = self.handles.get(number)
        if not isinstance(event, Event):
            raise self.violation("an event that doesn't exist, or not any more")
        self._here(event.device, "the event")
        return event

    def destroy(self, handle: Stream | Event | Graph | Module) -> None:
        if self.handles.pop(handle.number, None) is None:
            raise self.violation(f"a {type(handle).__name__.lower()} is destroyed twice")
        last = handle.marker if isinstance(handle, Event) else None
        if isinstance(handle, Stream | Module):
            last = handle.last
        if last is not None and not self.host_knows(last):
            raise self.violation(f"a {type(handle).__name__.lower()} is destroyed while {last.name} is under way")

    # Order ------------------------------------------------------------------------------------------------------------

    def host_knows(self, operation: Operation) -> bool:
        """Whether the host has waited for it, or for something that comes after it."""
        return self.host_clock.get(operation.stream.number, 0) >= operation.clock[operation.stream.number]

    def queue(self, stream: Stream, operation: Operation) -> None:
        """Put an operation behind what the stream holds, what it waits for, and what the host has waited for."""
        if stream.capture is not None:
            stream.capture.operations.append(operation)
            return
        stream.clock = merged(stream.clock, self.host_clock)
        stream.count += 1
        stream.clock[stream.number] = stream.count
        operation.clock = dict(stream.clock)
        operation.needs = [*stream.needs, *([stream.last] if stream.last is not None else [])]
        stream.needs, stream.last = [], operation
        self._check_races(operation)
        self.unpublished.append(operation)
        if self.order == "eager":
            self.run(operation)

    def _check_races(self, operation: Operation) -> None:
        for access in operation.accesses:
            if access.allocation.is_freed:
                raise self.violation(f"{operation.name} uses memory that was freed")
            touched = [entry for entry in access.allocation.touched if not self.host_knows(entry[0])]
            for other, start, stop, wrote in touched:
                is_before = operation.clock.get(other.stream.number, 0) >= other.clock[other.stream.number]
                overlaps = start < access.stop and access.start < stop
                if overlaps and (wrote or access.writes) and not is_before:
                    raise self.violation(f"race: {operation.name} doesn't wait for {other.name}, on the same memory")
            access.allocation.touched = [*touched, (operation, access.start, access.stop, access.writes)]

    def run(self, operation: Operation) -> None:
        """Run it, and before it whatever it needs, in an order of the driver's choice."""
        if operation.ends is not None:
            return
        needs = [other for other in operation.needs if other.ends is None]
        if self.order != "eager":
            self.random.shuffle(needs)
        for other in needs:
            self.run(other)
        operation.run()
        operation.ends = max((other.ends or 0.0 for other in operation.needs), default=0.0) + operation.seconds
        operation.needs = []

    def run_some(self) -> None:
        """Now and then something that is queued runs before anybody asks for it."""
        if self.order == "random" and self.random.random() < 0.3:
            queued = [operation for operation in self.unpublished if operation.ends is None]
            if queued:
                self.run(self.random.choice(queued))

    def wait_for(self, operation: Operation) -> None:
        """The host waits: what comes before the operation runs, and is known to the host from now on."""
        self.run(operation)
        self.host_clock = merged(self.host_clock, operation.clock)
        for done in [other for other in self.unpublished if self.host_knows(other)]:
            self.run(done)
            done.publish()
            self.unpublished.remove(done)

    # At the end -------------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Raise unless every rule was kept and everything was freed."""
        left = [allocation.kind for allocation in self.allocations.values()]
        left += [type(handle).__name__.lower() for handle in self.handles.values()]
        if left:
            self.violation(f"not freed at the end: {', '.join(sorted(left))}")
        if self.contexts:
            self.violation("a context is current at the end that wasn't before")
        if any((old.data != POISON).any() for old in self.graveyard):
            self.violation("memory was written after it was freed")
        if self.violations:
            raise StandinError("; ".join(dict.fromkeys(self.violations)))


def merged(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
    """The later of two vector clocks, stream by stream."""
    return {key: max(a.get(key, 0), b.get(key, 0)) for key in a.keys() | b.keys()}
