from __future__ import annotations

import itertools

import numpy as np
import pytest

from runtime.batching import batches_by, cut, group_by


def test_nothing() -> None:
    assert group_by([], len) == {}
    assert cut([], 3) == batches_by([], len, 3) == []


def test_groups_keep_the_order_of_the_items() -> None:
    words = ["bb", "a", "cc", "ddd", "e"]
    assert list(group_by(words, len).items()) == [(2, ["bb", "cc"]), (1, ["a", "e"]), (3, ["ddd"])]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_against_a_slow_reference(size: int) -> None:
    items = np.random.default_rng(0).integers(0, 50, 40).tolist()
    expected = []
    for key in dict.fromkeys(item % 4 for item in items):
        members = [item for item in items if item % 4 == key]
        while members:
            expected.append((key, members[:size]))
            members = members[size:]
    assert batches_by(items, lambda item: item % 4, size) == expected
    assert list(itertools.chain(*cut(items, size))) == items
    assert max(map(len, cut(items, size))) == min(size, 40)
