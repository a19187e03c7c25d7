from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from runtime.errors import UserError
from runtime.pipeline import PipelineSettings, run_pipeline

QUICK = PipelineSettings(batch=4, window=8, loaders=3, runners=2)


def same(item: int) -> int:
    return item


def parity(item: int) -> int:
    return item % 2


def squares(batch: list[int]) -> list[int]:
    return [item * item for item in batch]


def pipeline_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pipeline")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert pipeline_threads() == []


class Recorded:
    """A `run` that remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._lock = threading.Lock()

    def __call__(self, batch: list[int]) -> list[int]:
        with self._lock:
            self.batches.append(batch)
        return squares(batch)


def test_nothing() -> None:
    assert list(run_pipeline([], same, parity, squares, QUICK)) == []
    assert list(run_pipeline(iter(()), same, parity, squares, QUICK)) == []


@pytest.mark.parametrize(
    "settings",
    [
        PipelineSettings(1, 0, None, 1, 1),
        PipelineSettings(3, 0, None, 4, 2),
        QUICK,
        PipelineSettings(16, 64, 1.0, 2, 3),
    ],
)
@pytest.mark.parametrize("count", [1, 7, 200])
def test_order_is_kept_whatever_each_stage_takes(settings: PipelineSettings, count: int) -> None:
    dice = random.Random(count)

    def load(item: int) -> int:
        time.sleep(dice.choice((0, 0, 0, 0.002)))
        return item

    def run(batch: list[int]) -> list[int]:
        time.sleep(dice.choice((0, 0.002)))
        return squares(batch)

    def source() -> Iterator[int]:
        for item in range(count):
            time.sleep(dice.choice((0, 0, 0, 0.001)))
            yield item

    keys = [dice.randrange(4) for _ in range(count)]
    found = list(run_pipeline(source(), load, keys.__getitem__, run, settings))
    assert found == [item * item for item in range(count)]


def test_batches_are_of_one_key_full_but_for_the_last_and_the_same_every_time() -> None:
    keys = [random.Random(n).choice("aaab") for n in range(103)]
    once = Recorded()
    list(run_pipeline(range(103), same, keys.__getitem__, once, PipelineSettings(4, 1000, None, 3, 2)))
    assert all(len({keys[item] for item in batch}) == 1 for batch in once.batches)
    assert sorted(item for batch in once.batches for item in batch) == list(range(103))
    assert sum(len(batch) < 4 for batch in once.batches) <= 2  # one rest of each key
    for loaders in (1, 5):
        again = Recorded()
        list(run_pipeline(range(103), same, keys.__getitem__, again, PipelineSettings(4, 1000, None, loaders, 2)))
        assert sorted(again.batches) == sorted(once.batches)


def test_one_that_is_alone_waits_for_so_many_others_and_no_longer() -> None:
    record = Recorded()
    key: Callable[[int], bool] = (0).__eq__
    list(run_pipeline(range(100), same, key, record, PipelineSettings(4, 6, None, 2, 1)))
    # It has left when the 7th other one came, between the batches of items 1–4 and 5–8.
    assert record.batches.index([0]) == record.batches.index([1, 2, 3, 4]) + 1
    assert all(len(batch) == 4 for batch in record.batches if batch not in ([0], [97, 98, 99]))


def test_those_of_its_own_key_do_not_overtake_an_item() -> None:
    record = Recorded()
    list(run_pipeline(range(16), same, lambda _: 0, record, PipelineSettings(8, 2, None, 2, 1)))
    assert [len(batch) for batch in record.batches] == [8, 8]


def test_a_slow_source_does_not_keep_an_item_waiting() -> None:
    """The source's second item comes only when the first one's result is there."""
    seen = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        assert seen.wait(20), "the first item waits for company for ever"
        yield from range(1, 6)

    record = Recorded()
    for result in run_pipeline(source(), same, same, record, PipelineSettings(4, 8, 0.05, 2, 2)):
        if result == 0:
            seen.set()
    assert [0] in record.batches


def test_without_a_time_limit_a_slow_source_still_makes_full_batches() -> None:
    def source() -> Iterator[int]:
        for item in range(8):
            time.sleep(0.02)
            yield item

    record = Recorded()
    list(run_pipeline(source(), same, lambda _: 0, record, PipelineSettings(4, 8, None, 2, 2)))
    assert record.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("settings", [QUICK, PipelineSettings(2, 0, None, 1, 1)])
def test_a_slow_consumer_stops_the_source(settings: PipelineSettings) -> None:
    given = taken = most = 0

    def source() -> Iterator[int]:
        nonlocal given, most
        for item in range(150):
            given += 1
            most = max(most, given - taken)
            yield item

    for _ in run_pipeline(source(), same, parity, squares, settings):
        taken += 1
        if taken % 10 == 0:
            time.sleep(0.01)
    assert given == taken == 150
    assert most <= settings.inside + 1  # one is the consumer's


def test_items_are_let_go_of_when_they_are_loaded() -> None:
    """A stream of arrays must not hold them until their results are taken."""

    class Large:
        pass

    alive: list[weakref.ref[Large]] = []

    def source() -> Iterator[Large]:
        for _ in range(40):
            item = Large()
            alive.append(weakref.ref(item))
            yield item
            del item

    most = 0
    settings = PipelineSettings(4, 40, None, 2, 1)
    for _ in run_pipeline(source(), lambda _: 0, lambda _: 0, lambda batch: batch, settings):
        time.sleep(0.002)
        most = max(most, sum(reference() is not None for reference in alive))
    assert len(alive) == 40
    assert most <= 6  # the source's, the reader's, and those that are being loaded


@pytest.mark.parametrize("slow", ["load", "run"])
def test_a_slow_stage_stops_those_before_it(slow: str) -> None:
    lock, inside, most = threading.Lock(), 0, 0

    def source() -> Iterator[int]:
        nonlocal inside, most
        for item in range(60):
            with lock:
                inside += 1
                most = max(most, inside)
            yield item

    def load(item: int) -> int:
        time.sleep(0.002 if slow == "load" else 0)
        return item

    def run(batch: list[int]) -> list[int]:
        time.sleep(0.01 if slow == "run" else 0)
        return squares(batch)

    for _ in run_pipeline(source(), load, parity, run, QUICK):
        with lock:
            inside -= 1
    assert most <= QUICK.inside + 1


def test_a_bad_item_takes_its_place_and_nothing_stops() -> None:
    bad = {0, 5, 6, 7, 8, 49}

    def load(item: int) -> int:
        if item in bad:
            raise UserError(f"{item} is bad")
        return item

    record = Recorded()
    found = list(run_pipeline(range(50), load, parity, record, QUICK))
    assert len(found) == 50
    assert {item for item, result in enumerate(found) if isinstance(result, UserError)} == bad
    assert str(found[5]) == "5 is bad"
    assert [found[item] for item in range(50) if item not in bad] == [n * n for n in range(50) if n not in bad]
    assert not bad & {item for batch in record.batches for item in batch}


def test_nothing_but_bad_items() -> None:
    def load(item: int) -> int:
        raise UserError(str(item))

    found = list(run_pipeline(range(300), load, parity, squares, QUICK))
    assert [str(result) for result in found] == list(map(str, range(300)))


def test_an_item_alone_among_bad_ones_does_not_wait_for_ever() -> None:
    def load(item: int) -> int:
        if item:
            raise UserError(str(item))
        return item

    assert next(iter(run_pipeline(iter(int, 1), same, same, squares, QUICK))) == 0
    found = run_pipeline(range(10**9), load, parity, squares, QUICK)
    with closing(found):
        assert next(found) == 0


@pytest.mark.parametrize("error", [ValueError("lost"), MemoryError("no room"), SystemExit(3)])
@pytest.mark.parametrize("stage", ["source", "load", "key", "run"])
def test_a_worker_that_dies_is_reported(stage: str, error: BaseException) -> None:
    def fail_at(item: int, where: str) -> int:
        if item == 22 and where == stage:
            raise error
        return item

    def source() -> Iterator[int]:
        for item in range(1000):
            yield fail_at(item, "source")

    def run(batch: list[int]) -> list[int]:
        return [fail_at(item, "run") for item in batch]

    def load(item: int) -> int:
        return fail_at(item, "load")

    def key(item: int) -> int:
        return fail_at(item, "key") // 4

    found: list[int] = []
    with pytest.raises(type(error)) as caught:
        found.extend(run_pipeline(source(), load, key, run, PipelineSettings(4, 8)))
    assert caught.value is error
    if stage != "key":  # what came before it is not lost
        assert found == list(range(20 if stage == "run" else 22))


def test_too_few_results_are_a_defect_not_a_hang() -> None:
    with pytest.raises(ValueError, match="3 results for a batch of 4"):
        list(run_pipeline(range(9), same, lambda _: 0, lambda batch: batch[1:], QUICK))


def test_what_cannot_be_iterated_is_said_at_once() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(run_pipeline(3, same, same, squares, QUICK))  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 30])
def test_a_consumer_that_stops_early(after: int) -> None:
    results = run_pipeline(iter(range(10**9)), same, parity, squares, QUICK)
    for _ in range(after):
        next(results)
    results.close()
    assert pipeline_threads() == []


def test_a_break_ends_it_too() -> None:
    for result in run_pipeline(range(10**9), same, parity, squares, QUICK):
        if result == 17 * 17:
            break
    gc.collect()
    assert pipeline_threads() == []


def test_a_source_that_never_answers_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.pipeline.SOURCE_PATIENCE_S", 0.05)
    answer = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        answer.wait(20)

    results = run_pipeline(source(), same, same, squares, PipelineSettings(1, 0, None, 1, 1))
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 5
    assert pipeline_threads() == ["pipeline-source"]
    answer.set()
    for thread in threading.enumerate():
        if thread.name == "pipeline-source":
            thread.join(5)
