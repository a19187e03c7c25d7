"""Strips of PNG files: the rows are unpacked as a stream, and libpng undoes their filters strip by strip.

A row's filter refers to the row above. A strip is therefore written as a PNG file whose first row is the last one of
the strip before, unfiltered. Libpng's raw samples, not colours, come back, since they are the next strip's first row.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np

from ..headers import Header

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by the type of colour
_PALETTE = 3
# The type of colour and the depth of a file whose pixels have as many bytes, for the filters to act alike.
_CARRIERS = {1: (0, 8), 2: (0, 16), 3: (2, 8), 4: (6, 8), 6: (2, 16), 8: (6, 16)}
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class _Layout:
    width: int
    height: int
    depth: int
    colour: int
    palette: np.ndarray | None  # uint8 [n, 3]

    @property
    def row_bytes(self) -> int:
        return -(-self.width * _SAMPLES[self.colour] * self.depth // 8)

    @property
    def pixel_bytes(self) -> int:
        return max(1, _SAMPLES[self.colour] * self.depth // 8)


def png_strips(file: BinaryIO, header: Header, most_rows: int) -> Iterator[np.ndarray] | None:
    """Strips of a PNG file; None for one that is interlaced."""
    file.seek(len(_SIGNATURE) + 8)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    if (
        interlaced
        or colour not in _SAMPLES
        or depth not in (1, 2, 4, 8, 16)
        or (width, height) != header.stored_hw[::-1]
    ):
        return None
    return _strips(file, _Layout(width, height, depth, colour, None), most_rows)


def _strips(file: BinaryIO, layout: _Layout, most_rows: int) -> Iterator[np.ndarray]:
    palette: np.ndarray | None = None
    above = np.zeros(layout.row_bytes, np.uint8)
    packed = _Unpacker(file)
    for first in range(0, layout.height, most_rows):
        rows = min(most_rows, layout.height - first)
        filtered = packed.read(rows * (layout.row_bytes + 1))
        if palette is None and packed.palette is not None:
            palette = np.frombuffer(packed.palette, np.uint8).reshape(-1, 3)
        raw = _unfiltered(b"\0" + above.tobytes() + filtered, rows + 1, layout)[1:]
        above = raw[-1].copy()
        yield _as_rgb(raw, layout, palette)


class _Unpacker:
    """The unpacked content of the IDAT chunks, piece by piece; other chunks are passed over."""

    def __init__(self, file: BinaryIO) -> None:
        self.palette: bytes | None = None
        self._file = file
        self._file.seek(len(_SIGNATURE))
        self._unpacker = zlib.decompressobj()
        self._left, self._checksum = 0, 0  # of the current IDAT chunk: bytes, and the checksum up to here
        self._packed = b""

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises ValueError where the file has less, or is damaged."""
        parts: list[bytes] = []
        while count:
            if not self._packed:
                self._packed = self._next()
            try:
                part = self._unpacker.decompress(self._packed, min(count, _PIECE))
            except zlib.error as error:
                raise ValueError(f"damaged ({error})") from error
            self._packed = self._unpacker.unconsumed_tail
            if not part and self._unpacker.eof:
                raise ValueError("damaged, it has less pixels than its header says")
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _next(self) -> bytes:
        """The next packed bytes."""
        while not self._left:
            length, kind = struct.unpack(">I4s", self._file.read(8))
            if kind == b"IDAT":
                self._left, self._checksum = length, zlib.crc32(kind)
                if not length:
                    self._check(self._checksum)
                continue
            if kind == b"IEND":
                raise ValueError("truncated, the file ends early")
            if kind == b"PLTE" and length <= 768 and length % 3 == 0:
                self.palette = self._file.read(length)
                self._check(zlib.crc32(kind + self.palette))
            else:
                self._file.seek(length + 4, 1)
        data = self._file.read(min(self._left, _PIECE))
        if not data:
            raise ValueError("truncated, the file ends early")
        self._left -= len(data)
        self._checksum = zlib.crc32(data, self._checksum)
        if not self._left:
            self._check(self._checksum)
        return data

    def _check(self, checksum: int) -> None:
        if struct.unpack(">I", self._file.read(4)) != (checksum,):
            raise ValueError("damaged, the checksum of a part is wrong")


def _unfiltered(filtered: bytes, rows: int, layout: _Layout) -> np.ndarray:
    """The raw bytes of rows, uint8 [rows, row bytes], by libpng."""
    colour, depth = _CARRIERS[layout.pixel_bytes]
    width = layout.row_bytes // layout.pixel_bytes
    head = struct.pack(">IIBBBBB", width, rows, depth, colour, 0, 0, 0)
    data = b"".join(
        (
            _SIGNATURE,
            *(_chunk(*one) for one in ((b"IHDR", head), (b"IDAT", zlib.compress(filtered, 0)), (b"IEND", b""))),
        )
    )
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("damaged, a row has a filter that PNG does not know")
    if pixels.ndim == 3:  # OpenCV's order of channels
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        pixels = cv2.cvtColor(pixels, code, dst=pixels)
    if pixels.dtype == np.uint16:
        pixels = pixels.byteswap() if np.little_endian else pixels
    return np.ascontiguousarray(pixels).view(np.uint8).reshape(rows, layout.row_bytes)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _as_rgb(raw: np.ndarray, layout: _Layout, palette: np.ndarray | None) -> np.ndarray:
    """Raw bytes [rows, row bytes] as colours, uint8 [rows, w, 3]; of 16 bits the upper 8, without transparency."""
    samples = _SAMPLES[layout.colour]
    if layout.depth == 16:
        raw = raw[:, ::2]
    elif layout.depth < 8:
        bits = np.unpackbits(raw, axis=1).reshape(len(raw), -1, layout.depth)[:, : layout.width]
        raw = (bits * (1 << np.arange(layout.depth - 1, -1, -1))).sum(2).astype(np.uint8)
        if layout.colour != _PALETTE:
            raw *= np.uint8(255 // ((1 << layout.depth) - 1))
    pixels = raw.reshape(len(raw), layout.width, samples)
    if layout.colour == _PALETTE:
        if palette is None or int(raw.max(initial=0)) >= len(palette):
            raise ValueError("damaged, a colour that its palette does not have")
        return palette[raw]
    return np.ascontiguousarray(pixels[..., :3]) if samples >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
