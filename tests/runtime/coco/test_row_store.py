"""Rows in memory and in a temporary file: the same rows, and nothing left behind."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import tempfile
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import matching, parse_ground_truth, row_store
from runtime.coco.results import Results, filter_results, join_results
from runtime.coco.row_store import RowStore, chunks, ranges, release
from runtime.detection_filter import DetectionFilter
from runtime.files import WriteError

ROW = np.dtype([("number", np.int64), ("half", np.float64)])


def rows(count: int, first: int = 0) -> np.ndarray:
    made = np.zeros(count, ROW)
    made["number"] = np.arange(first, first + count)
    made["half"] = made["number"] / 2
    return made


def filled(counts: list[int]) -> RowStore:
    store = RowStore(ROW)
    for count in counts:
        store.add(rows(count, len(store)))
    return store


@pytest.mark.parametrize("held", [1, 5 * ROW.itemsize, 1 << 20])
@pytest.mark.parametrize("counts", [[], [0], [1], [3, 0, 7, 2], [40, 1]])
def test_rows_come_back_in_order(counts: list[int], held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "BYTES_HELD", held)
    store = filled(counts)
    assert len(store) == sum(counts)
    found = store.finish()
    np.testing.assert_array_equal(found, rows(sum(counts)))
    release(found["half"])
    np.testing.assert_array_equal(found, rows(sum(counts)), err_msg="after their pages were unmapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux reports mapped pages")
def test_released_rows_take_no_memory_and_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handles = len(os.listdir("/proc/self/fd"))
    found = filled([100_000] * 5).finish()
    assert len(os.listdir("/proc/self/fd")) <= handles + 1, "the mapping's own handle at most"
    assert not list(tmp_path.iterdir()), "a killed process leaves no file"
    assert resident_kb(tmp_path) < 100
    assert found["number"].sum() == 500_000 * 499_999 // 2
    assert resident_kb(tmp_path) > 7000, "8 MB were read, else this shows nothing"
    release(found["half"][3:])
    assert resident_kb(tmp_path) < 100
    del found
    assert len(os.listdir("/proc/self/fd")) == handles


def resident_kb(folder: Path) -> int:
    """Resident memory of mappings of files in a folder."""
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = str(folder) in line
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return resident


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux reports mapped pages")
def test_scoring_keeps_no_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no time more than a part's, and in the end none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(matching, "IMAGES_AT_A_TIME", 64)
    images, each = 2000, 100
    content = {
        "images": [{"id": number} for number in range(images)],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    truth = parse_ground_truth(content)
    ids = np.repeat(np.arange(images), each)
    boxes = np.tile(np.array([1.0, 2.0, 3.0, 4.0]), (len(ids), 1))
    results = join_results([Results(ids, np.ones_like(ids), boxes, np.linspace(1, 0, len(ids)))])
    mapped_kb = len(ids) * 56 // 1024
    most = 0
    for _ in matching.match(truth, results, np.ones(images, bool), np.ones(1, bool)):
        most = max(most, resident_kb(tmp_path))
    assert most < mapped_kb / 4
    kept = DetectionFilter(min_score=0.5)
    assert 0 < len(filter_results(results, kept)) < len(results)
    assert resident_kb(tmp_path) < mapped_kb / 4
    assert results.scores.sum() > 0
    assert resident_kb(tmp_path) > mapped_kb / 2, "else this shows nothing"


@pytest.mark.filterwarnings("error")
def test_an_interrupted_run_closes_the_file() -> None:
    handles = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    store = filled([1_000_000])
    del store
    assert not handles or len(os.listdir("/proc/self/fd")) == handles


def test_a_full_disk_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(WriteError, match=r"temporary file in .*missing: No such file.*TMPDIR"):
        filled([1_000_000])


FILL = """
import resource, signal
import numpy as np
from runtime.coco.row_store import RowStore
from runtime.files import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9_599_000, resource.RLIM_INFINITY))  # a kB of the second write is left
store = RowStore(np.dtype(np.int64))
try:
    for _ in range(4):
        store.add(np.zeros(600_000, np.int64))
except WriteError as error:
    print(error)
del store
"""


def test_a_disk_that_fills_up_is_one_message() -> None:
    pytest.importorskip("resource", reason="limits a file's size")
    ended = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, timeout=100)
    assert "cannot write detections to a temporary file" in ended.stdout
    assert "File too large" in ended.stdout
    assert ended.stderr == "", "closing writes no more"


def test_short_writes_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[: 1 << 20])

    def short_file(**options: Any) -> Short:
        with tempfile.NamedTemporaryFile() as named:
            return Short(named.name, "r+")

    monkeypatch.setattr(tempfile, "TemporaryFile", short_file)
    np.testing.assert_array_equal(filled([400_000, 300_000]).finish(), rows(700_000))


def test_a_file_that_cannot_be_mapped_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    store = filled([1_000_000])
    monkeypatch.setattr(mmap, "mmap", full)
    with pytest.raises(WriteError, match="cannot map a temporary file of 15 MB into memory: Cannot allocate memory; "):
        store.finish()


def test_ranges_and_chunks() -> None:
    counts = np.array([2, 0, 3, 1, 9, 1, 1])
    firsts = np.array([5, 9, 0, 7, 20, 1, 2])
    slow = [first + step for first, count in zip(firsts, counts, strict=True) for step in range(count)]
    assert ranges(firsts, counts).tolist() == slow
    assert ranges(firsts[:0], counts[:0]).tolist() == []
    for size in (1, 4, 5, 6, 100):
        pieces = list(chunks(counts, size))
        assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(len(counts)))
        assert all(counts[piece].sum() <= size or piece.stop - piece.start == 1 for piece in pieces)
    assert list(chunks(counts[:0], 4)) == []
