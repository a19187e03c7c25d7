"""Rows that need not fit into memory: a few are held, more go to a temporary file that is read through a mapping.

Mapped pages count as the process's memory as long as they are mapped, so readers of many rows `release` them.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from io import FileIO

import numpy as np

from ..files import WriteError, write_all

BYTES_HELD = 4 << 20  # a store that stays below makes no file


class RowStore:
    """Rows of one structured dtype, in the order in which they are added."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._held: list[np.ndarray] = []
        self._bytes_held = 0
        self._file: FileIO | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: np.ndarray) -> None:
        """Append rows. The store keeps the array, so the caller must not change it. Raises WriteError."""
        self._held.append(rows)
        self._bytes_held += rows.nbytes
        self._count += len(rows)
        if self._bytes_held >= BYTES_HELD:
            self._write()

    def finish(self) -> np.ndarray:
        """All rows, read-only where they lie in a file. The store cannot be used any more. Raises WriteError."""
        if self._file is None:
            # As bytes: NumPy would compare the fields of each array with those of the next.
            return np.frombuffer(bytearray().join(rows.tobytes() for rows in self._held), self._dtype)
        self._write()
        with self._file as file:  # the mapping outlives the handle
            try:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise WriteError(
                    f"cannot map a temporary file of {self._count * self._dtype.itemsize >> 20} MB into memory: "
                    f"{error.strerror or error}; raise the limit of address space (ulimit -v)"
                ) from error
        return np.frombuffer(mapping, self._dtype)

    def __del__(self) -> None:
        """Close the file of a store that an interrupted run leaves behind."""
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        try:
            if self._file is None:
                # Closed by `finish`. Without a buffer, closing has nothing to write, which would fail on a full disk.
                self._file = tempfile.TemporaryFile(buffering=0, prefix="atss-toolkit-")  # noqa: SIM115
            for rows in self._held:
                write_all(self._file, rows.tobytes())
        except OSError as error:
            raise WriteError(
                f"cannot write detections to a temporary file in {tempfile.gettempdir()}: {error.strerror or error}; "
                "free some space there, or name another folder in TMPDIR"
            ) from error
        self._held, self._bytes_held = [], 0


def release(rows: np.ndarray) -> None:
    """Unmap the pages of rows (or of a view of them) that lie in a file. They are read again where they are needed."""
    owner: object = rows
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def ranges(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers `first` … `first` + `count` − 1 of each range, one range after the other, int64."""
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(firsts - starts, counts)


def chunks(counts: np.ndarray, size: int) -> Iterator[slice]:
    """Slices of `counts` whose sums are about `size`; none is empty."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = int(ends[first] - counts[first])
        last = max(first + 1, int(np.searchsorted(ends, before + size, side="right")))
        yield slice(first, last)
        first = last
