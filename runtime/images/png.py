"""Decodes PNG files with OpenCV, and refuses those that are truncated or damaged.

OpenCV by itself would also return the upper half of a truncated file, or print to stderr. It refuses a file that has
all pixels and lacks only its end marker, which other decoders show whole; that file gets the marker here.
"""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from .headers import Header

_SIGNATURE_BYTES = 8
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the whole end marker
_TRUNCATED = "truncated, the file ends early"
_PIECE = 1 << 20  # bytes


def decode_png(data: bytes, header: Header) -> np.ndarray:
    """The pixels of a PNG file, uint8 [h, w, 3] RGB; the orientation is not applied.

    Raises ValueError for a file that is truncated or damaged.
    """
    data = _checked(data, header)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode it ({error.err}); save it again as JPEG or PNG") from error
    if pixels is None:
        raise ValueError("damaged, or of a kind that OpenCV cannot decode; save it again as JPEG or PNG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _checked(data: bytes, header: Header) -> bytes:
    """The file, with an end marker if it lacked one.

    Raises ValueError if pixels are missing, or if a checksum is wrong.
    """
    position, kind = _SIGNATURE_BYTES, b""
    pixels: list[memoryview] = []
    while kind != b"IEND":
        try:
            length, kind = struct.unpack_from(">I4s", data, position)
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        except struct.error as error:
            if not _is_whole(pixels, header):
                raise ValueError(_TRUNCATED) from error
            return data[:position] + _END
        is_critical = kind[:1].isupper()
        if is_critical and zlib.crc32(memoryview(data)[position + 4 : position + 8 + length]) != checksum:
            raise ValueError(f"damaged, the checksum of its {kind.decode('latin-1')} part is wrong")
        if kind == b"IDAT":
            pixels.append(memoryview(data)[position + 8 : position + 8 + length])
        position += 12 + length
    return data


def _is_whole(pixels: list[memoryview], header: Header) -> bool:
    """Whether the compressed pixels are there up to their own checksum, and unpack to no more than the image takes."""
    height, width = header.stored_hw
    left = 2 * height * (8 * width + 1)  # bytes; 8 are a pixel's most, and interlaced rows have more filter bytes
    unpacker = zlib.decompressobj()
    try:
        for part in pixels:
            packed: bytes | memoryview = part
            while packed and not unpacker.eof and left >= 0:
                left -= len(unpacker.decompress(packed, _PIECE))
                packed = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return unpacker.eof and left >= 0
