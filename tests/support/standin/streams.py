"""What is queued: copies, events, and captured graphs. The driver's lock is held (`Driver.call`)."""

from __future__ import annotations

import threading

import numpy as np

from .driver import POISON, Driver, merged
from .parts import Access, Event, Graph, Operation, Stream

COPY_BYTES_PER_SECOND = 1e9


def copy_to_device(driver: Driver, target: int, source: int, size: int, stream: Stream) -> None:
    """Queue a copy; the source is compared with its present content once the host has waited."""
    to, at = driver.find(target, size, "device", "target of a copy to the device")
    host, start = driver.find(source, size, "pinned", "source of an asynchronous copy")
    before = host.data[start : start + size].copy()

    def run() -> None:
        to.data[at : at + size] = host.data[start : start + size]

    def publish() -> None:
        if (host.data[start : start + size] != before).any():
            raise driver.violation("pinned memory was changed before the copy from it was waited for")

    accesses = [Access(to, at, at + size, True), Access(host, start, start + size, False)]
    seconds = size / COPY_BYTES_PER_SECOND
    driver.queue(stream, Operation(f"copy of {size} bytes to the device", stream, accesses, run, publish, seconds))


def copy_to_host(driver: Driver, target: int, source: int, size: int, stream: Stream) -> None:
    """Queue a copy; the target holds POISON until the host has waited."""
    of, at = driver.find(source, size, "device", "source of a copy to the host")
    host, start = driver.find(target, size, "pinned", "target of an asynchronous copy")
    read = np.empty(size, np.uint8)

    def run() -> None:
        read[:] = of.data[at : at + size]

    def publish() -> None:
        if (host.data[start : start + size] != POISON).any():
            raise driver.violation("pinned memory was written before the copy to it was waited for")
        host.data[start : start + size] = read

    accesses = [Access(of, at, at + size, False), Access(host, start, start + size, True)]
    seconds = size / COPY_BYTES_PER_SECOND
    driver.queue(stream, Operation(f"copy of {size} bytes to the host", stream, accesses, run, publish, seconds))
    host.data[start : start + size] = POISON


def record(driver: Driver, event: Event, stream: Stream) -> None:
    """Put an event behind the work of a stream."""
    _not_capturing(driver, stream, "an event is recorded")
    event.marker = Operation("an event", stream)
    driver.queue(stream, event.marker)


def wait(driver: Driver, stream: Stream, event: Event) -> None:
    """Hold the next work of a stream back until an event."""
    _not_capturing(driver, stream, "a wait is queued")
    if event.marker is None:
        raise driver.violation("a stream waits for an event that was never recorded: it doesn't wait")
    stream.needs.append(event.marker)
    stream.clock = merged(stream.clock, event.marker.clock)


def synchronize_stream(driver: Driver, stream: Stream) -> None:
    """Wait for all work of a stream."""
    if stream.last is not None:
        driver.wait_for(stream.last)


def synchronize_event(driver: Driver, event: Event) -> None:
    """Wait for an event."""
    if event.marker is None:
        raise driver.violation("the host waits for an event that was never recorded: it doesn't wait")
    driver.wait_for(event.marker)


def milliseconds(driver: Driver, start: Event, end: Event) -> float:
    """Time between two events that the host has waited for."""
    for event in (start, end):
        if event.marker is None or not driver.host_knows(event.marker):
            raise driver.violation("the time of an event that wasn't waited for")
        if not event.times:
            raise driver.violation("the time of an event that takes none")
    assert start.marker is not None
    assert end.marker is not None
    assert start.marker.ends is not None
    assert end.marker.ends is not None
    return (end.marker.ends - start.marker.ends) * 1000


def begin_capture(driver: Driver, stream: Stream, is_global: bool) -> None:
    """Record the work of a stream from now on."""
    _not_capturing(driver, stream, "a capture begins")
    stream.capture = Graph(driver.next_number(), threading.get_ident(), is_global)
    driver.capturing.append(stream.capture)


def end_capture(driver: Driver, stream: Stream) -> Graph | None:
    """None: the capture was invalidated."""
    graph = stream.capture
    if graph is None:
        raise driver.violation("a capture ends that never began")
    if graph.thread != threading.get_ident():
        raise driver.violation("a capture ends in another thread than it began in")
    stream.capture = None
    driver.capturing.remove(graph)
    return None if graph.is_broken else graph


def launch(driver: Driver, graph: Graph, stream: Stream) -> None:
    """Queue all that was captured as one operation."""
    _not_capturing(driver, stream, "a graph is launched")
    for captured in graph.operations:
        captured.check()

    def run() -> None:
        for captured in graph.operations:
            captured.run()

    def publish() -> None:
        for captured in graph.operations:
            captured.publish()

    accesses = [access for captured in graph.operations for access in captured.accesses]
    seconds = sum(captured.seconds for captured in graph.operations)
    driver.queue(stream, Operation("a graph", stream, accesses, run, publish, seconds))


def _not_capturing(driver: Driver, stream: Stream, what: str) -> None:
    if stream.capture is not None:
        stream.capture.is_broken = True
        raise driver.violation(f"{what} on a stream that captures")
