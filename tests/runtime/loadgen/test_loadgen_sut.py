from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.detections import Detections, empty_detections
from runtime.errors import UserError
from runtime.images import ImageError
from runtime.images.preprocess import load
from runtime.loadgen.sut import BatchingSystem, Query, Responses, Samples, SystemUnderTest, decode_response, encode

from ...support.fakes import PREPROCESS, red_image

FOUND = Detections(
    np.array([[0.1, 1 / 3, 1e5, 7], [1, 2, 3, 4]], np.float32),
    np.array([0.9, 0.1], np.float32),
    np.array([79, 0], np.int32),
)


class FakeLoadgen:
    """Copies a response's bytes during the call, as LoadGen does; notes those that were answered."""

    def __init__(self) -> None:
        self.answers: dict[int, list[bytes]] = {}
        self._lock = threading.Lock()

    def QuerySampleResponse(self, number: int, address: int, size: int) -> tuple[int, int, int]:
        return number, address, size

    def QuerySamplesComplete(self, responses: Sequence[tuple[int, int, int]]) -> None:
        with self._lock:
            for number, address, size in responses:
                assert (address == 0) == (size == 0)
                data = ctypes.string_at(address, size) if size else b""
                self.answers.setdefault(number, []).append(data)


def queries(*numbers: int) -> list[Query]:
    return [Query(100 + number, number) for number in numbers]


def sampled(*numbers: int) -> list[Any]:
    return [SimpleNamespace(id=100 + number, index=number) for number in numbers]


def test_a_response_carries_the_detections_bit_for_bit() -> None:
    again = decode_response(encode(FOUND).tobytes())
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(FOUND, name))
        assert getattr(again, name).dtype == getattr(FOUND, name).dtype
    assert len(decode_response(encode(empty_detections()).tobytes())) == 0
    with pytest.raises(ValueError, match="size"):
        decode_response(b"\0" * 23)


def test_samples_are_in_memory_while_they_are_loaded(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        cv2.imwrite(str(path), red_image(30 + index, 40)[..., ::-1])
    samples = Samples(paths, None)
    assert len(samples) == 4
    samples.load([3, 1, 3])  # LoadGen names one twice where it has too few
    assert samples[3].size_hw == (33, 40)
    np.testing.assert_array_equal(samples[1].pixels, red_image(31, 40))
    with pytest.raises(KeyError):
        samples[0]
    samples.unload([3, 3])
    with pytest.raises(KeyError):
        samples[3]
    paths[0].unlink()
    with pytest.raises(ImageError):
        samples.load([0])


def test_samples_have_the_pixels_that_evaluation_sees(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (256, 512, 3), np.uint8))
    samples = Samples([path], PREPROCESS)
    samples.load([0])
    assert samples[0].size_hw == (256, 512)
    assert samples[0].pixels.shape == (64, 128, 3)  # divided by the decoder
    np.testing.assert_array_equal(samples[0].pixels, load(path, PREPROCESS).pixels)


def test_every_query_is_answered_once() -> None:
    library = FakeLoadgen()
    responses = Responses(library)
    responses.expect(queries(0, 1))
    responses.complete(queries(0), [FOUND])
    responses.fail(queries(0, 1), UserError("out of memory"))
    responses.fail(queries(1), UserError("later"))
    assert library.answers == {100: [encode(FOUND).tobytes()], 101: [b""]}
    assert str(responses.failure) == "out of memory"


def test_a_system_answers_before_it_returns() -> None:
    library = FakeLoadgen()
    responses = Responses(library)
    system = SystemUnderTest(lambda asked, to: to.complete(asked, [FOUND] * len(asked)), responses)
    system.issue(sampled(0, 1, 2))
    system.flush()
    assert set(library.answers) == {100, 101, 102}
    assert responses.failure is None


@pytest.mark.parametrize("error", [UserError("out of memory"), ZeroDivisionError(), KeyboardInterrupt()])
def test_nothing_is_raised_into_loadgen_and_nothing_stays_open(error: BaseException) -> None:
    library = FakeLoadgen()
    calls = []

    def answer(asked: Sequence[Query], to: Responses) -> None:
        calls.append(len(asked))
        to.complete(asked[:1], [FOUND])
        raise error

    responses = Responses(library)
    system = SystemUnderTest(answer, responses)
    system.issue(sampled(0, 1, 2))
    system.issue(sampled(3))  # answered with nothing, at once
    assert calls == [3]
    assert library.answers == {100: [encode(FOUND).tobytes()], 101: [b""], 102: [b""], 103: [b""]}
    assert responses.failure is error


# Batches of queries that come one by one; here without its threads.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def waiting_system(clock: Clock, batch: int, wait_s: float) -> BatchingSystem:
    responses = Responses(FakeLoadgen())
    return BatchingSystem(
        lambda *_: None, responses, key=lambda query: query.index % 2, batch=batch, wait_s=wait_s, clock=clock
    )


def taken(system: BatchingSystem, now: float = 0.0) -> list[int]:
    return [query.index for query in system.take(now)]


def test_no_query_waits() -> None:
    assert taken(waiting_system(Clock(), 4, 0)) == []


def test_what_waits_with_the_oldest_goes_with_it() -> None:
    system = waiting_system(Clock(), batch=3, wait_s=0)
    for number in (0, 1, 2, 4, 6, 3):
        system.issue(sampled(number))
    assert [taken(system) for _ in range(4)] == [[0, 2, 4], [1, 3], [6], []]


def test_the_oldest_waits_for_company_but_not_for_ever() -> None:
    clock = Clock()
    system = waiting_system(clock, batch=3, wait_s=0.5)
    system.issue(sampled(0))
    clock.now = 0.4
    system.issue(sampled(1))
    assert taken(system, clock.now) == []
    clock.now = 0.5
    assert taken(system, clock.now) == [0]
    assert taken(system, clock.now) == []  # 1 has waited for 0.1 s
    clock.now = 0.9
    assert taken(system, clock.now) == [1]


def test_a_full_batch_goes_at_once_past_an_older_query() -> None:
    system = waiting_system(Clock(), batch=2, wait_s=9)
    for number in (0, 1, 3):
        system.issue(sampled(number))
    assert taken(system) == [1, 3]
    assert taken(system) == []


def test_flush_ends_the_waiting() -> None:
    system = waiting_system(Clock(), batch=2, wait_s=9)
    system.issue(sampled(0))
    system.flush()
    assert taken(system) == [0]


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_answer_everything_in_batches(workers: int) -> None:
    library = FakeLoadgen()
    sizes = []

    def answer(asked: Sequence[Query], to: Responses) -> None:
        sizes.append(len(asked))
        time.sleep(0.002)
        to.complete(asked, [FOUND] * len(asked))

    with BatchingSystem(answer, Responses(library), key=lambda _: 0, batch=4, workers=workers) as system:
        for number in range(50):
            system.issue(sampled(number))
            time.sleep(0.0002)
    assert sorted(library.answers) == list(range(100, 150))
    assert all(len(answers) == 1 for answers in library.answers.values())
    assert sum(sizes) == 50
    assert max(sizes) <= 4
    assert len(sizes) < 50  # some had company
    assert threading.active_count() < 50


def test_leaving_answers_what_still_waits() -> None:
    library = FakeLoadgen()
    with BatchingSystem(
        lambda asked, to: to.complete(asked, [FOUND] * len(asked)), Responses(library), lambda _: 0, 8, wait_s=60
    ) as system:
        system.issue(sampled(0, 1))
        time.sleep(0.05)
        assert library.answers == {}
    assert set(library.answers) == {100, 101}


def test_a_failing_worker_goes_on_answering() -> None:
    library = FakeLoadgen()
    responses = Responses(library)

    def answer(asked: Sequence[Query], to: Responses) -> None:
        raise UserError("out of memory")

    with BatchingSystem(answer, responses, lambda _: 0, 2) as system:
        system.issue(sampled(0, 1, 2, 3, 4))
        system.issue(sampled(5))
    assert {number: answers for number, answers in library.answers.items() if answers == [b""]}.keys() == set(
        range(100, 106)
    )
    assert str(responses.failure) == "out of memory"
