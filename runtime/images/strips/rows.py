"""Strips of BMP and PNM files, whose rows lie in the file as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..headers import Header
from ..other_formats import decode_other

_BMP_FIELDS = 54  # bytes of the two headers up to the end of the older one
_PNM_CHANNELS = {b"P4": 0, b"P5": 1, b"P6": 3}  # of the binary kinds; 0: a bit per pixel


def bmp_strips(file: BinaryIO, header: Header, most_rows: int) -> Iterator[np.ndarray] | None:
    """Strips of a BMP file; None for one that is compressed, or whose header is older than Windows 3."""
    file.seek(0)
    start = file.read(_BMP_FIELDS)
    (pixels_at,) = struct.unpack_from("<I", start, 10)
    size, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", start, 14)
    if size < 40 or compression not in (0, 3) or bits not in (1, 4, 8, 16, 24, 32) or pixels_at > 1 << 16:
        return None
    file.seek(0)
    head = file.read(pixels_at)
    stride = (width * bits + 31) // 32 * 4

    def strips() -> Iterator[np.ndarray]:
        for first in range(0, abs(height), most_rows):
            rows = min(most_rows, abs(height) - first)
            # With a positive height the last row of the image comes first in the file.
            begin = abs(height) - first - rows if height > 0 else first
            file.seek(pixels_at + begin * stride)
            small = head[:22] + struct.pack("<i", rows if height > 0 else -rows) + head[26:]
            small = small[:34] + struct.pack("<I", rows * stride) + small[38:]
            yield decode_other(small + _read(file, rows * stride), Header("BMP", (rows, width)))

    return strips()


def pnm_strips(file: BinaryIO, header: Header, most_rows: int) -> Iterator[np.ndarray] | None:
    """Strips of a binary PNM file; None for one whose numbers are written as text."""
    file.seek(0)
    kind = file.read(2)
    if kind not in _PNM_CHANNELS:
        return None
    numbers: list[int] = []
    while len(numbers) < (2 if kind == b"P4" else 3):
        numbers.append(_number(file))
    height, width = header.stored_hw
    most = numbers[2] if len(numbers) == 3 else 1
    if numbers[:2] != [width, height] or not 1 <= most <= 65535:
        return None
    channels = _PNM_CHANNELS[kind]
    stride = -(-width // 8) if not channels else width * channels * (1 if most < 256 else 2)
    tail = b"" if kind == b"P4" else b" %d" % most

    def strips() -> Iterator[np.ndarray]:
        for first in range(0, height, most_rows):
            rows = min(most_rows, height - first)
            head = b"%s %d %d%s\n" % (kind, width, rows, tail)
            yield decode_other(head + _read(file, rows * stride), Header("PNM", (rows, width)))

    return strips()


def _number(file: BinaryIO) -> int:
    """The next number of a PNM header, and the one byte behind it."""
    text = b""
    while True:
        byte = file.read(1)
        if byte == b"#":
            file.readline(1 << 16)
            byte = b"\n"
        if byte.isdigit() and len(text) < 9:
            text += byte
        elif byte.isspace() and text:
            return int(text)
        elif not byte.isspace():
            raise ValueError("damaged, a PNM header with something else than numbers")


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("truncated, the file ends early")
    return data
