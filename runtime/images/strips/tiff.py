"""Strips of TIFF files: some strips, or a row of the file's tiles, become a small TIFF file for the decoder."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..headers import Header
from ..other_formats import decode_other

_WIDTH, _HEIGHT, _COMPRESSION, _ROWS_PER_STRIP, _PLANAR = 256, 257, 259, 278, 284
_STRIPS = (273, 279)  # offsets and byte counts
_TILES = (324, 325)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}  # of a value
_LAYOUTS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_LONG, _LONG8 = 4, 16
# What decides how the pixels are read; all else (descriptions, profiles, EXIF) is left out.
_KEPT = (
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 301, 317, 320, 322, 323, 324, 325),
    *(338, 339, 347, 529, 530, 531, 532),
)
_MOST_BYTES = 1 << 26  # of a tag's values


class _Page:
    """The tags of a file's first page."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        file.seek(0)
        start = file.read(16)
        self.order = "<" if start[:2] == b"II" else ">"
        self.is_big = struct.unpack_from(self.order + "H", start, 2) == (43,)
        (first,) = struct.unpack_from(self.order + ("Q" if self.is_big else "I"), start, 8 if self.is_big else 4)
        file.seek(first)
        count_layout, entry_layout = ("Q", "HHQ8s") if self.is_big else ("H", "HHI4s")
        (count,) = self._unpack(count_layout)
        if count > 0xFFFF:
            raise ValueError("damaged, a TIFF whose first page has too many tags")
        entries = [self._unpack(entry_layout) for _ in range(count)]
        self.tags = {tag: (kind, self._values(kind, n, value)) for tag, kind, n, value in entries if tag in _KEPT}

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        layout = self.order + layout
        return struct.unpack(layout, self.file.read(struct.calcsize(layout)))

    def _values(self, kind: int, count: int, inline: bytes) -> bytes:
        size = _SIZES.get(kind, 0) * count
        if size > _MOST_BYTES:
            raise ValueError("damaged, a tag that is larger than any")
        if size <= len(inline):
            return inline[:size]
        (at,) = struct.unpack(self.order + ("Q" if self.is_big else "I"), inline)
        here = self.file.tell()
        self.file.seek(at)
        data = self.file.read(size)
        self.file.seek(here)
        if len(data) < size:
            raise ValueError("truncated, the file ends early")
        return data

    def numbers(self, tag: int) -> np.ndarray:
        """The whole numbers of a tag; none where the file lacks it."""
        kind, data = self.tags.get(tag, (1, b""))
        if kind not in _LAYOUTS:
            raise ValueError(f"damaged, tag {tag} is no number")
        return np.frombuffer(data, np.dtype(self.order + _LAYOUTS[kind])).astype(np.int64)

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        found = self.numbers(tag)
        return int(found[0]) if len(found) else default

    def small_file(self, rows: int, places: tuple[int, int], pieces: list[bytes], rows_per_strip: int) -> bytes:
        """A TIFF file of `rows` rows whose strips or tiles are `pieces`; `places` are their tags."""
        offsets_tag, counts_tag = places
        tags = dict(self.tags)
        tags[_HEIGHT] = _LONG, struct.pack(self.order + "I", rows)
        if places == _STRIPS:
            tags[_ROWS_PER_STRIP] = _LONG, struct.pack(self.order + "I", rows_per_strip)
        layout = f"{self.order}{len(pieces)}I"
        at = 8
        offsets = []
        for piece in pieces:
            offsets.append(at)
            at += len(piece)
        tags[offsets_tag] = _LONG, struct.pack(layout, *offsets)
        tags[counts_tag] = _LONG, struct.pack(layout, *map(len, pieces))
        at += at % 2
        body = b"".join(pieces).ljust(at - 8, b"\0")
        entries, values = [], b""
        values_at = at + 2 + 12 * len(tags) + 4
        for tag, (kind, data) in sorted(tags.items()):
            count = len(data) // _SIZES.get(kind, 1)
            if len(data) > 4:
                inline = struct.pack(self.order + "I", values_at + len(values))
                values += data + b"\0" * (len(data) % 2)
            else:
                inline = data.ljust(4, b"\0")
            entries.append(struct.pack(self.order + "HHI", tag, kind, count) + inline)
        mark = b"II*\0" if self.order == "<" else b"MM\0*"
        head = mark + struct.pack(self.order + "I", at)
        return b"".join((head, body, struct.pack(self.order + "H", len(tags)), *entries, b"\0\0\0\0", values))


def tiff_strips(file: BinaryIO, header: Header, most_rows: int) -> Iterator[np.ndarray] | None:
    """Strips of a TIFF file, or rows of its tiles; None where one has more rows than a strip may have.

    None also for planes that are stored one by one.
    """
    page = _Page(file)
    height, width = header.stored_hw
    if page.number(_PLANAR, 1) != 1 or any(
        kind in (_LONG8, 17, 18, 13) for tag, (kind, _) in page.tags.items() if tag not in (*_STRIPS, *_TILES)
    ):
        return None
    if _TILE_WIDTH in page.tags:
        rows, places = page.number(_TILE_HEIGHT, 0), _TILES
        tile_width = page.number(_TILE_WIDTH, 0)
        if rows < 1 or tile_width < 1:
            return None
        per_row = -(-width // tile_width)
    else:
        rows, places, per_row = min(height, page.number(_ROWS_PER_STRIP, height)), _STRIPS, 1
    if rows < 1:
        return None
    offsets, counts = (page.numbers(tag) for tag in places)
    if not len(offsets) == len(counts) == per_row * -(-height // rows):
        return None
    if rows > most_rows:
        whole_row = int(counts[0]) // rows if rows else 0
        if (
            places == _TILES
            or page.number(_COMPRESSION, 1) != 1
            or whole_row < 1
            or len(offsets) != 1
            or counts[0] != whole_row * rows
        ):
            return None
        # One strip without compression: its rows are as good as strips.
        rows = most_rows
        firsts = np.arange(0, height, rows)
        offsets, counts = offsets[0] + firsts * whole_row, np.minimum(rows, height - firsts) * whole_row
    return _strips(page, (width, height), (rows, per_row, most_rows), places, offsets, counts)


def _strips(
    page: _Page,
    size: tuple[int, int],
    rows: tuple[int, int, int],
    places: tuple[int, int],
    offsets: np.ndarray,
    counts: np.ndarray,
) -> Iterator[np.ndarray]:
    (width, height), (unit, per_row, most_rows) = size, rows
    together = max(1, most_rows // unit)  # strips, or rows of tiles, that are decoded at a time
    for first in range(0, -(-height // unit), together):
        members = slice(first * per_row, (first + together) * per_row)
        pieces = [_piece(page.file, int(at), int(n)) for at, n in zip(offsets[members], counts[members], strict=True)]
        count = min(together * unit, height - first * unit)
        small = page.small_file(count, places, pieces, unit)
        yield decode_other(small, Header("TIFF", (count, width)))


def _piece(file: BinaryIO, at: int, count: int) -> bytes:
    if count > _MOST_BYTES * 4:
        raise ValueError("damaged, a strip that is larger than any")
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise ValueError("truncated, the file ends early")
    return data
