"""Ids as tools write them: numbered, found by value, given back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.coco import CocoError
from runtime.coco.format import NO_ID, IdTable

HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("written", "ids", "comes_back"),
    [
        ([], [], None),
        ([5, -3, 0, 2**63 - 1], [5, -3, 0, 2**63 - 1], None),
        ([3.0, 1, -2.0], [3, 1, -2], None),
        (["7", "-2", "40"], [7, -2, 40], ["7", "-2", "40"]),
        ([7, "8", 9.0], [7, 8, 9], [7, "8", 9.0]),
        (["000139", "000285"], [139, 285], ["000139", "000285"]),
        (["1.0", "2.0"], [1, 2], ["1.0", "2.0"]),
        (["b", "a", "c"], [1, 2, 3], ["b", "a", "c"]),
        (["1", "01"], [1, 2], ["1", "01"]),
        ([HUGE, 7, 2**63], [3, 1, 2], [HUGE, 7, 2**63]),
        ([10**400, 1], [2, 1], [10**400, 1]),
        ([-(2**63), 5], [1, 2], [-(2**63), 5]),
        ([1.5, "x", 2], [1, 2, 3], [1.5, "x", 2]),
        ([1e300, 2], [2, 1], [1e300, 2]),
    ],
)
def test_ids_are_numbered_and_found_again(written: list[Any], ids: list[int], comes_back: list[Any] | None) -> None:
    table = IdTable(written, "a.json: images")
    assert table.ids.tolist() == ids
    assert table.ids.dtype == np.int64
    assert (None if table.written is None else list(table.written)) == comes_back
    assert [table.find(value) for value in written] == ids
    again = IdTable(written if table.written is None else table.written, "again")
    assert again.ids.tolist() == ids, "the numbers follow from the ids as written"


@pytest.mark.parametrize(
    ("written", "reference", "found"),
    [
        ([1, 2], "2", 2),
        ([1, 2], " 2 ", 2),
        ([1, 2], "2.0", 2),
        ([1, 2], 2.0, 2),
        ([1, 2], "02", 2),
        (["1", "2"], 2, 2),
        (["000139", "000285"], 285, 285),
        (["000139", "000285"], "285", 285),
        (["a", "17"], 17, 2),
        ([HUGE, 1], str(HUGE), 2),
        ([HUGE, 1], float(HUGE), None),
        (["1", "01"], "01", 2),
        (["1", "01"], 1, None),  # may be either
        (["1", "01"], "001", None),
        ([1, 2], True, None),
        ([1, 2], None, None),
        ([1, 2], [1], None),
        ([1, 2], {}, None),
        ([1, 2], "1x", None),
        ([1, 2], "", None),
        ([1, 2], "²", None),
        ([1, 2], float("nan"), None),
        ([1, 2], float("inf"), None),
        ([1, 2], 1.5, None),
        ([1, 2], 10**400, None),
        ([1, 2], "9" * 5000, None),
    ],
)
def test_references_are_found_by_value(written: list[Any], reference: Any, found: int | None) -> None:
    assert IdTable(written, "a.json: images").find(reference) == found


def test_whole_columns_are_renumbered() -> None:
    column = np.array([9, 5, 9, 6, NO_ID])
    assert IdTable([5, 9], "x").find_all(column).tolist() == column.tolist()
    assert IdTable(["a", 9, 5], "x").find_all(column).tolist() == [2, 3, 2, NO_ID, NO_ID]
    assert IdTable(["a", 9, 5], "x").find_all(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([1, 1], r"a\.json: images: id 1 occurs more than once \(1 such ids\)"),
        ([1, 1.0], "id 1 occurs more than once"),
        (["x", "x", "y", "y"], r"id 'x' occurs more than once \(2 such ids\)"),
        ([1, 2, "1"], r"images: ids 1 and '1' both occur, a number and a text of one value; give every entry an id"),
        ([1.0, "1"], "ids 1 and '1' both occur"),
        ([1, None], "entry 2 has id None, expected a number or a text"),
        ([True], "entry 1 has id True"),
        (["  "], "entry 1 has id '  '"),
        ([float("nan")], "entry 1 has id nan"),
        ([[1]], r"entry 1 has id \[1\]"),
        ([{"a": "b" * 1000}], r"entry 1 has id \{'a': 'b+…, expected"),
        ([10**400, 10**400], "id a number of about 401 digits occurs more than once"),
    ],
)
def test_ids_that_are_none_or_not_distinct(written: list[Any], message: str) -> None:
    with pytest.raises(CocoError, match=message) as caught:
        IdTable(written, "a.json: images")
    assert len(str(caught.value)) < 300
