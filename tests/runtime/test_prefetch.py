from __future__ import annotations

import threading
import time

import pytest

from runtime.prefetch import prefetch


def test_nothing() -> None:
    assert list(prefetch(lambda item: item, [], ahead=3)) == []


@pytest.mark.parametrize("ahead", [1, 2, 50])
def test_order_is_kept_though_later_items_finish_first(ahead: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.004 if item % 3 == 0 else 0)
        return item * item

    assert list(prefetch(work, range(20), ahead=ahead, threads=4)) == [item * item for item in range(20)]


def test_never_more_than_asked_for_is_waiting() -> None:
    begun, taken = [], 0
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    for _ in prefetch(work, range(50), ahead=5):
        taken += 1
        time.sleep(0.001)
        with lock:
            assert len(begun) <= taken + 5
    assert taken == 50


def test_an_error_comes_at_its_items_turn() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = prefetch(work, range(10), ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_a_consumer_that_stops_early_ends_the_threads() -> None:
    before = threading.active_count()
    for item in (results := prefetch(lambda item: item, range(1000), ahead=4)):
        if item == 2:
            break
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
