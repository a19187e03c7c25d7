"""Loads, batches and runs the items of a stream in threads; results keep the items' order, and memory is bounded.

    source ──one thread──▶ load ──a pool──▶ batches by key ──▶ run ──a pool──▶ results, in order

The module knows nothing of images. The bound is the number of items inside at a time: a slow stage or a busy consumer
stops the source. All bookkeeping happens in the consumer's thread, so an error, Ctrl-C or a closed generator ends it
there. The threads of the pools hold nothing but their current call.
"""

from __future__ import annotations

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
    """Batch size, waiting and threads of a pipeline. A batch starts when it is full, or when an item has waited enough.

    An item has waited enough when more than `window` other items have come after it, or when the source has kept it
    waiting for `wait_s` seconds.
    """

    batch: int = 8  # most items that run together
    window: int = 16  # items
    wait_s: float | None = None  # seconds; None: no limit
    loaders: int = 2  # threads that load
    runners: int = 2  # batches that run at the same time

    @property
    def inside(self) -> int:
        """Most items between the source and the consumer.

        It exceeds the window by more than a batch, so that an item's window always fills up and no item waits for room
        that it takes itself.
        """
        return self.window + (self.runners + 1) * self.batch + self.loaders


def run_pipeline(
    source: Iterable[Item],
    load: Callable[[Item], Ready],
    key: Callable[[Ready], Hashable],
    run: Callable[[list[Ready]], Sequence[Result]],
    settings: PipelineSettings,
) -> Generator[Result | UserError, None, None]:
    """Yield each item's result, in the source's order. An item is released once it is loaded.

    `load` and `run` are called from several threads. Items with equal `key` run together, oldest first. The batches
    depend on the order of the items and on the settings, not on the speed of a stage, unless the source is slower than
    `wait_s`. If `load` raises a UserError, the error takes the place of the item's result; `run` may return one there.
    Any other exception, also of the source, ends the pipeline: it is raised here after all earlier items' results.

    The source is iterated in its own thread. A generator that is closed early leaves no thread behind, unless the
    source takes more than 5 s for its next item; that thread ends with the item or with the process.
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
            wake.clear()  # first, so that anything that happens from here on wakes this thread
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
    came_at: float  # seconds waited for the source until then


@dataclass
class _Group(Generic[Ready]):
    """Items of one key that wait for their batch."""

    members: list[_Member[Ready]] = field(default_factory=list)
    overtaken: int = 0  # items of other keys since the first member


@dataclass(frozen=True)
class _Running(Generic[Result]):
    numbers: list[int]
    future: Future[Sequence[Result]]


def place(
    groups: dict[Hashable, _Group[Ready]], key: Hashable, member: _Member[Ready] | None, settings: PipelineSettings
) -> list[list[_Member[Ready]]]:
    """Put a member into its key's group; return the batches that are due. None is a failed item."""
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
    """Take out the groups that wait no longer, because no more items come or the source is too slow."""

    def is_due(group: _Group[Ready]) -> bool:
        return is_last or (settings.wait_s is not None and seconds_waited - group.members[0].came_at >= settings.wait_s)

    return [groups.pop(key).members for key in [key for key, group in groups.items() if is_due(group)]]


def _run_batch(run: Callable[[list[Ready]], Sequence[Result]], batch: list[Ready]) -> Sequence[Result]:
    results = run(batch)
    if len(results) != len(batch):
        raise ValueError(f"{len(results)} results for a batch of {len(batch)}")
    return results


class _Reader:
    """Iterates a source in a thread, at most `room` items ahead; `wake` is set at each item and at the end."""

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
        """Seconds spent waiting for the source so far."""
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
