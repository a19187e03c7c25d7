"""Items of a stream loaded, batched and run in threads; results in the order of the items, memory bounded.

    source ──one thread──▶ load ──a pool──▶ batches by key ──▶ run ──a pool──▶ results, in order

It knows nothing of images. The bound is one number, how many items are inside at a time: a slow stage or a consumer
that is busy stops the source. All bookkeeping happens in the consumer's thread, so that an error, Ctrl-C or a closed
generator ends it there, and the pools' threads hold nothing but the call they are in.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .errors import UserError

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")

SOURCE_PATIENCE_S = 5.0  # how long a stopped pipeline waits for a source that is still making its next item


@dataclass(frozen=True)
class PipelineSettings:
    batch: int = 8  # items that run together, at most
    window: int = 16  # an item waits for company while no more than so many others overtake it …
    wait_s: float | None = None  # … and the source has kept it waiting for no more than so many seconds
    loaders: int = 2  # threads that load
    runners: int = 2  # batches in the making at a time

    @property
    def inside(self) -> int:
        """How many items are between the source and the consumer, at most.

        More than a batch over the window, so that an item's window always fills up: it never waits for room that it
        takes itself.
        """
        return self.window + (self.runners + 1) * self.batch + self.loaders


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_pipeline(
    source: Iterable[Item],
    load: Callable[[Item], Ready],
    key: Callable[[Ready], Hashable],
    run: Callable[[list[Ready]], Sequence[Result]],
    settings: PipelineSettings,
) -> Generator[Result | UserError, None, None]:
    """Yield each item's result, in the source's order. Items are let go of when they are loaded.

    `load` and `run` are called from several threads. Items whose `key` is equal run together, oldest first; which ones
    do depends on the order of the items and the settings, not on any stage's speed, unless the source is slower than
    `wait_s`. A UserError of `load` takes the place of that item's result. Anything else that is raised, by the source
    too, ends the pipeline: it is raised here at its turn, after the results of all items before.

    The source is iterated in a thread of its own. A generator that is closed early leaves no thread; only a source that
    takes over 5 s for its next item is left behind, to end with that item or the process.
    """
    wake = threading.Event()
    reader = _Reader(source, settings.inside, wake)
    load_pool = ThreadPoolExecutor(settings.loaders, "pipeline-load")
    run_pool = ThreadPoolExecutor(settings.runners, "pipeline-run")
    loading: deque[Future[Ready]] = deque()
    groups: dict[Hashable, _Group[Ready]] = {}
    running: list[_Running[Result]] = []
    done: dict[int, Result | UserError | _Failure] = {}  # by the item's number
    given = loaded = yielded = 0

    def start_loading() -> None:
        nonlocal given
        while reader.items:
            future = load_pool.submit(load, reader.items.popleft())
            future.add_done_callback(lambda _: wake.set())
            loading.append(future)
            given += 1

    def take_loaded() -> None:
        nonlocal loaded
        while loading and loading[0].done():
            future = loading.popleft()
            member: _Member[Ready] | None = None
            try:
                member = _Member(loaded, future.result(), reader.seconds_waited())
            except UserError as error:
                done[loaded] = error
            except BaseException as error:
                done[loaded] = _Failure(error)
            start_running(place(groups, member and key(member.ready), member, settings))
            loaded += 1

    def start_running(batches: list[list[_Member[Ready]]]) -> None:
        for batch in batches:
            future = run_pool.submit(_run_batch, run, [member.ready for member in batch])
            running.append(_Running([member.number for member in batch], future))
            future.add_done_callback(lambda _: wake.set())

    def take_results() -> None:
        for batch in [batch for batch in running if batch.future.done()]:
            running.remove(batch)
            try:
                done.update(zip(batch.numbers, batch.future.result(), strict=True))
            except BaseException as error:
                done.update(dict.fromkeys(batch.numbers, _Failure(error)))

    try:
        reader.start()
        while True:
            wake.clear()  # before looking at anything: what happens from here on wakes us
            has_ended = reader.has_ended
            start_loading()
            take_loaded()
            start_running(_leave(groups, settings, reader.seconds_waited(), has_ended and not loading))
            take_results()
            if yielded in done:
                result = done.pop(yielded)
                if isinstance(result, _Failure):
                    raise result.error
                yielded += 1
                yield result
                reader.let_in_one()
            elif has_ended and yielded == given:
                if reader.error is not None:
                    raise reader.error
                return
            else:
                wake.wait(settings.wait_s if groups else None)
    finally:
        reader.stop()
        for pool in (load_pool, run_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        reader.join()


@dataclass(frozen=True)
class _Failure:
    error: BaseException


@dataclass(frozen=True)
class _Member(Generic[Ready]):
    number: int
    ready: Ready
    came_at: float  # by the source's waiting time


@dataclass
class _Group(Generic[Ready]):
    """Items of one key that wait for company."""

    members: list[_Member[Ready]] = field(default_factory=list)
    overtaken: int = 0  # how many others came since the first


@dataclass(frozen=True)
class _Running(Generic[Result]):
    numbers: list[int]
    future: Future[Sequence[Result]]


def place(
    groups: dict[Hashable, _Group[Ready]], key: Hashable, member: _Member[Ready] | None, settings: PipelineSettings
) -> list[list[_Member[Ready]]]:
    """Put a member into its key's group (None: an item that failed, but overtakes); returns the batches that go now."""
    batches = []
    for other in [other for other in groups if member is None or other != key]:
        groups[other].overtaken += 1
        if groups[other].overtaken > settings.window:
            batches.append(groups.pop(other).members)
    if member is not None:
        group = groups.setdefault(key, _Group())
        group.members.append(member)
        if len(group.members) >= settings.batch:
            batches.append(groups.pop(key).members)
    return batches


def _leave(
    groups: dict[Hashable, _Group[Ready]], settings: PipelineSettings, seconds_waited: float, is_last: bool
) -> list[list[_Member[Ready]]]:
    """Take out the groups that wait no longer: nothing else comes, or the source is too slow."""

    def is_due(group: _Group[Ready]) -> bool:
        return is_last or (settings.wait_s is not None and seconds_waited - group.members[0].came_at >= settings.wait_s)

    return [groups.pop(key).members for key in [key for key, group in groups.items() if is_due(group)]]


def _run_batch(run: Callable[[list[Ready]], Sequence[Result]], batch: list[Ready]) -> Sequence[Result]:
    results = run(batch)
    if len(results) != len(batch):
        raise ValueError(f"{len(results)} results for a batch of {len(batch)}")
    return results


class _Reader:
    """Iterates a source in a thread, never further ahead than it was let; `wake` is set at each item and the end."""

    def __init__(self, source: Iterable[Any], room: int, wake: threading.Event) -> None:
        self.items: deque[Any] = deque()
        self.has_ended = False  # set after the last item
        self.error: BaseException | None = None
        self._room = threading.Semaphore(room)
        self._wake = wake
        self._is_stopped = False
        self._asked_at: float | None = None
        self._waited = 0.0
        # A daemon: a source that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._read, args=(iter(source),), name="pipeline-source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def seconds_waited(self) -> float:
        """Seconds that were spent waiting for the source so far."""
        asked_at = self._asked_at
        return self._waited + (time.monotonic() - asked_at if asked_at is not None else 0.0)

    def let_in_one(self) -> None:
        self._room.release()

    def stop(self) -> None:
        self._is_stopped = True
        self._room.release()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join(SOURCE_PATIENCE_S)

    def _read(self, iterator: Iterator[Any]) -> None:
        try:
            while True:
                self._room.acquire()
                if self._is_stopped:
                    return
                began = self._asked_at = time.monotonic()
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._asked_at = None
                    self._waited += time.monotonic() - began
                self.items.append(item)
                self._wake.set()
        except BaseException as error:  # raised again in the consumer's thread
            self.error = error
        finally:
            self.has_ended = True
            self._wake.set()
