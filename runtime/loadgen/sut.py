"""The system under test (SUT): a detector and its images behind the callbacks of MLPerf's LoadGen.

LoadGen calls `issue` and `flush` from its own threads, and aborts the process if one of them raises. So the first
failure is kept, all later queries are answered at once with nothing, and the caller that started the test raises it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..batching import group_by
from ..detections import Detections, empty_detections
from ..images import Decoded
from ..images.preprocess import load
from ..machine.processor import processors
from ..manifest import Preprocess

COLUMNS = 6  # of a response: x1, y1, x2, y2 in pixels of the image, score, class (0-based)


@dataclass(frozen=True)
class Query:
    """One image of a query of LoadGen."""

    id: int  # LoadGen's
    index: int  # of the image


class Samples:
    """LoadGen's library of samples: images loaded for `pre` (`Detector.load_preprocess`), held until `unload`."""

    def __init__(self, paths: Sequence[Path], pre: Preprocess | None) -> None:
        self._paths, self._pre = paths, pre
        self._images: dict[int, Decoded] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, indices: Iterable[int]) -> None:
        """Load images into memory, in parallel, of any size: they were checked before. Raises ImageError."""
        wanted = sorted({index for index in indices if index not in self._images})
        with ThreadPoolExecutor(processors()) as pool:
            images = pool.map(lambda index: load(self._paths[index], self._pre, max_pixels=sys.maxsize), wanted)
            self._images.update(zip(wanted, images, strict=True))

    def unload(self, indices: Iterable[int]) -> None:
        """Drop images from memory."""
        for index in indices:
            self._images.pop(index, None)  # LoadGen may name one twice

    def __getitem__(self, index: int) -> Decoded:
        return self._images[index]


def encode(found: Detections) -> np.ndarray:
    """Detections as a response, float32 [n, COLUMNS]; `decode_response` is the inverse."""
    return np.concatenate([found.boxes, found.scores[:, None], found.classes[:, None]], axis=1).astype("<f4")


def decode_response(data: bytes) -> Detections:
    """The detections in the bytes of a response. Raises ValueError if their length is no multiple of a row's."""
    rows = np.frombuffer(data, "<f4").reshape(-1, COLUMNS)
    return Detections(rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int32))


class Responses:
    """Hands answers to LoadGen, one per query, and keeps the first failure."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self.failure: BaseException | None = None

    def expect(self, queries: Iterable[Query]) -> None:
        """Register queries that are to be answered."""
        with self._lock:
            self._open.update(query.id for query in queries)

    def complete(self, queries: Sequence[Query], found: Sequence[Detections]) -> None:
        """Answer queries that are not answered yet. LoadGen copies the arrays before its call returns."""
        with self._lock:
            ids = {query.id for query in queries} & self._open
            self._open -= ids
        arrays = [encode(detections) for detections in found]
        self._library.QuerySamplesComplete(
            [
                self._library.QuerySampleResponse(query.id, array.ctypes.data if array.size else 0, array.nbytes)
                for query, array in zip(queries, arrays, strict=True)
                if query.id in ids
            ]
        )

    def fail(self, queries: Sequence[Query], error: BaseException) -> None:
        """Keep the error if it is the first, and answer the queries with nothing, since LoadGen waits for them."""
        with self._lock:
            self.failure = self.failure or error
        self.complete(queries, [empty_detections()] * len(queries))


Answer = Callable[[Sequence[Query], Responses], None]


class SystemUnderTest:
    """Answers each query at once, in LoadGen's thread."""

    def __init__(self, answer: Answer, responses: Responses) -> None:
        self._answer, self.responses = answer, responses

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's callback for the samples of a query."""
        queries = [Query(int(sample.id), int(sample.index)) for sample in samples]
        self.responses.expect(queries)
        answer_or_fail(self._answer, queries, self.responses)

    def flush(self) -> None:
        """LoadGen's callback at the end of its queries; nothing waits here."""


def answer_or_fail(answer: Answer, queries: Sequence[Query], responses: Responses) -> None:
    """Answer the queries; after a failure, this or an earlier one, answer them with nothing."""
    if responses.failure is not None:
        responses.fail(queries, responses.failure)
        return
    try:
        answer(queries, responses)
    except BaseException as error:  # LoadGen must see none
        responses.fail(queries, error)


class BatchingSystem:
    """Answers queries of one image in batches: waiting queries that share a key are answered together.

    A free worker takes the oldest query and up to `batch` - 1 waiting queries with its key. The oldest query waits at
    most `wait_s` seconds for its batch to fill. `workers` threads answer. A context manager: on leaving, it answers the
    queries that still wait.
    """

    def __init__(
        self,
        answer: Answer,
        responses: Responses,
        key: Callable[[Query], Hashable],
        batch: int,
        wait_s: float = 0.0,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer, self.responses, self._key, self._clock = answer, responses, key, clock
        self._batch, self._wait_s = batch, wait_s
        self._waiting: deque[tuple[float, Query]] = deque()  # arrival, oldest first
        self._changed = threading.Condition()
        self._is_flushed = self._is_closed = False
        self._threads = [threading.Thread(target=self._work, name=f"loadgen-{n}") for n in range(workers)]

    def issue(self, samples: Sequence[Any]) -> None:
        """LoadGen's callback for the samples of a query: they are queued."""
        queries = [Query(int(sample.id), int(sample.index)) for sample in samples]
        self.responses.expect(queries)
        with self._changed:
            self._is_flushed = False
            self._waiting.extend((self._clock(), query) for query in queries)
            self._changed.notify()

    def flush(self) -> None:
        """LoadGen's callback when no more queries come for now: no batch waits to fill any longer."""
        with self._changed:
            self._is_flushed = True
            self._changed.notify_all()

    def take(self, now: float) -> list[Query]:
        """Take the batch that is due at `now` (the clock's seconds); empty if the oldest query can still wait."""
        if not self._waiting:
            return []
        groups = group_by((query for _, query in self._waiting), self._key)
        oldest = next(iter(groups.values()))
        is_due = self._is_flushed or self._is_closed or now - self._waiting[0][0] >= self._wait_s
        chosen = oldest if is_due else next((group for group in groups.values() if len(group) >= self._batch), [])
        batch = chosen[: self._batch]
        taken = {query.id for query in batch}
        self._waiting = deque(entry for entry in self._waiting if entry[1].id not in taken)
        return batch

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (batch := self.take(self._clock())):
                    if self._is_closed:
                        return
                    left = self._waiting[0][0] + self._wait_s - self._clock() if self._waiting else None
                    self._changed.wait(left if left is None else max(left, 0))
            answer_or_fail(self._answer, batch, self.responses)

    def __enter__(self) -> BatchingSystem:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
