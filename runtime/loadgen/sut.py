"""The system under test that MLPerf's LoadGen drives: a detector and its images behind LoadGen's callbacks.

LoadGen calls `issue` and `flush` from its own threads, and aborts the process where one raises: so nothing is raised
into it. The first failure is kept, every query from then on is answered at once with nothing, and whoever started the
test raises it.
"""

from __future__ import annotations

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
from ..manifest import Preprocess
from ..pipeline import processors

COLUMNS = 6  # of a response: x1, y1, x2, y2 in pixels of the image, score, class (0-based)


@dataclass(frozen=True)
class Query:
    """One image that LoadGen wants to be answered."""

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
        wanted = sorted({index for index in indices if index not in self._images})
        with ThreadPoolExecutor(processors()) as pool:
            images = pool.map(lambda index: load(self._paths[index], self._pre), wanted)
            self._images.update(zip(wanted, images, strict=True))

    def unload(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._images.pop(index, None)  # LoadGen may name one twice

    def __getitem__(self, index: int) -> Decoded:
        return self._images[index]


def encode(found: Detections) -> np.ndarray:
    """A response: float32 [n, COLUMNS], from which `decode_response` makes the same detections."""
    return np.concatenate([found.boxes, found.scores[:, None], found.classes[:, None]], axis=1).astype("<f4")


def decode_response(data: bytes) -> Detections:
    """Raises ValueError where the length is not a multiple of a row's."""
    rows = np.frombuffer(data, "<f4").reshape(-1, COLUMNS)
    return Detections(rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int32))


class Responses:
    """Hands answers to LoadGen, each query's once, and keeps the first failure."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self.failure: BaseException | None = None

    def expect(self, queries: Iterable[Query]) -> None:
        with self._lock:
            self._open.update(query.id for query in queries)

    def complete(self, queries: Sequence[Query], found: Sequence[Detections]) -> None:
        """Answer queries. The arrays live until LoadGen has copied them, which it does before the call returns."""
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
        """Keep the error if it is the first, and answer with nothing what is unanswered: LoadGen waits for it."""
        with self._lock:
            self.failure = self.failure or error
        self.complete(queries, [empty_detections()] * len(queries))


Answer = Callable[[Sequence[Query], Responses], None]


class SystemUnderTest:
    """`issue` and `flush` as LoadGen calls them. `answer` answers a query's samples before it returns."""

    def __init__(self, answer: Answer, responses: Responses) -> None:
        self._answer, self.responses = answer, responses

    def issue(self, samples: Sequence[Any]) -> None:
        queries = [Query(int(sample.id), int(sample.index)) for sample in samples]
        self.responses.expect(queries)
        answer_or_fail(self._answer, queries, self.responses)

    def flush(self) -> None:
        pass


def answer_or_fail(answer: Answer, queries: Sequence[Query], responses: Responses) -> None:
    if responses.failure is not None:
        responses.fail(queries, responses.failure)
        return
    try:
        answer(queries, responses)
    except BaseException as error:  # whatever it is: LoadGen must not see it
        responses.fail(queries, error)


class BatchingSystem:
    """As SystemUnderTest, for queries that come one by one: those that wait, and share a key, are answered together.

    A worker that is free takes the oldest query and what waits with it, at most `batch`; the oldest waits no longer
    than `wait_s` for company. `workers` threads answer. A context manager: leaving it answers what still waits.
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
        queries = [Query(int(sample.id), int(sample.index)) for sample in samples]
        self.responses.expect(queries)
        with self._changed:
            self._is_flushed = False
            self._waiting.extend((self._clock(), query) for query in queries)
            self._changed.notify()

    def flush(self) -> None:
        """LoadGen's word that no more will come for now: nothing waits for company any longer."""
        with self._changed:
            self._is_flushed = True
            self._changed.notify_all()

    def take(self, now: float) -> list[Query]:
        """The batch that may go now; empty where the oldest can still wait."""
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
