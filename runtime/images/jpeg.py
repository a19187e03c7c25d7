"""Decodes JPEG files with libjpeg-turbo, and refuses those whose compressed data is damaged.

The decoder fills what it cannot read and goes on with a warning. OpenCV drops the warnings; simplejpeg raises the
first one, and gives the same pixels, also at a half, quarter or eighth of the size. This module judges the warning: a
file that is whole, with an oddity that cameras write, is read; any other is refused.

A byte that changed can leave a file that decodes without a warning, and then nobody can tell (`docs/data.md`).
"""

from __future__ import annotations

import re

import cv2
import numpy as np
import simplejpeg

from .headers import Header

_EOI = b"\xff\xd9"
# A marker that ends compressed data: not a stuffed zero, a fill byte or a restart marker.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_TOLERATED = 16  # bytes between the pixels and the next marker that some cameras and editors leave
_EARLY_END = ("Premature end of JPEG file", "Corrupt JPEG data: premature end of data segment")
# Warnings about the header alone, which libjpeg-turbo gives before it reads any pixel.
_HARMLESS = ("Warning: unknown JFIF revision", "Unknown Adobe color transform", "Invalid SOS parameters for sequential")
_ZEROS = bytes(64)
_TRUNCATED = "truncated, the file ends early"
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_jpeg(data: bytes, header: Header, by: int = 1) -> np.ndarray:
    """The pixels of a JPEG file at 1/`by` of its size (1, 2, 4 or 8, a divisor of both sides), uint8 [h, w, 3] RGB.

    The orientation is not applied. Raises ValueError for a file that is truncated or damaged.
    """
    try:
        pixels = _decode(data, header, by, strict=True)
    except ValueError as error:
        data = _mended(data, header, str(error))
        pixels = _decode(data, header, by, strict=False)
    if _has_zeroed_part(data, header):
        raise ValueError("damaged, a part of its compressed data is zeros")
    return pixels if header.channels != 4 else _decode_cmyk(data, by)


def check_jpeg(data: bytes, header: Header) -> bytes:
    """The file's bytes, with an end marker if it lacked one, for a decoder that does not tell of damage.

    All compressed data is read, but few pixels are made. Raises ValueError for a file that is truncated or damaged.
    """
    try:
        _decode(data, header, 8, strict=True)
    except ValueError as error:
        data = _mended(data, header, str(error))
    if _has_zeroed_part(data, header):
        raise ValueError("damaged, a part of its compressed data is zeros")
    return data


def _decode(data: bytes, header: Header, by: int, strict: bool) -> np.ndarray:
    height, width = header.stored_hw
    return simplejpeg.decode_jpeg(
        data,
        "CMYK" if header.channels == 4 else "RGB",
        min_height=-(-height // by),
        min_width=-(-width // by),
        min_factor=by,
        strict=strict,
    )


def _decode_cmyk(data: bytes, by: int) -> np.ndarray:
    """OpenCV's conversion of four inks to RGB."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[by] | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("of a kind that OpenCV cannot decode; save it again as JPEG or PNG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _mended(data: bytes, header: Header, warning: str) -> bytes:
    """The file without what the decoder warned of, if it is whole all the same. Raises ValueError if it isn't."""
    if has_no_end := warning == _EARLY_END[0]:
        data = _ended(data)
        warning = _warning(data, header)
    if _is_before_pixels(data, warning):
        data = _without_stray_bytes(data)
        warning = _warning(data, header)
    if warning in _EARLY_END:
        raise ValueError(_TRUNCATED if has_no_end else "damaged, a part of its compressed data is missing")
    if not warning or warning.startswith(_HARMLESS) or _is_padding(data, warning):
        return data
    raise ValueError(f"damaged ({warning})")


def _warning(data: bytes, header: Header) -> str:
    """The decoder's first warning; empty where it has none."""
    try:
        _decode(data, header, 8, strict=True)
    except ValueError as error:
        return str(error)
    return ""


def _ended(data: bytes) -> bytes:
    """The file with the end marker that it lacks. Raises ValueError if scans are missing too, or if nobody can tell."""
    data = (data[:-1] if data.endswith(b"\xff") else data) + _EOI
    precision_left: dict[tuple[int, int], int] = {}  # by component and coefficient: bits that no scan had yet
    components: tuple[int, ...] = ()
    for marker, content in _segments(data):
        if marker in (0xC9, 0xCA):
            raise ValueError(_TRUNCATED)  # arithmetic codes are decodable without their end
        if marker in (0xC0, 0xC1, 0xC2):
            components = tuple(content[6 + 3 * index] for index in range(content[5]))
        elif marker == 0xDA:
            count = content[0]
            first, last, bits = content[1 + 2 * count], content[2 + 2 * count], content[3 + 2 * count] & 15
            for index in range(count):
                for coefficient in range(first, min(last, 63) + 1):
                    precision_left[content[1 + 2 * index], coefficient] = bits
    if any(precision_left.get((one, coefficient), 1) for one in components for coefficient in range(64)):
        raise ValueError(_TRUNCATED)
    return data


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    """Marker and content of each segment up to the end marker, that of compressed data left out."""
    found, position = [], 2
    while match := _END_OF_SCAN.search(data, position):
        marker = data[match.end() - 1]
        if marker == _EOI[1]:
            break
        length = max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
        found.append((marker, data[match.end() + 2 : match.end() + length]))
        position = match.end() + length
    return found


def _pixels_begin(data: bytes) -> int:
    """Where the compressed data of the first scan begins; the data's end if there is no scan."""
    position = 2
    while match := _END_OF_SCAN.search(data, position):
        position = match.end() + max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
        if data[match.end() - 1] == 0xDA:
            return position
    return len(data)


def _is_before_pixels(data: bytes, warning: str) -> bool:
    """Whether a warning is about stray bytes between the segments of the header, which hold no pixels."""
    found = _EXTRANEOUS.match(warning)
    return found is not None and int(found[2], 16) != _EOI[1] and _without_stray_bytes(data) != data


def _without_stray_bytes(data: bytes) -> bytes:
    """The file without bytes that belong to no segment of its header."""
    parts, position = [data[:2]], 2
    while match := _END_OF_SCAN.search(data, position):
        position = match.end() + max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
        parts.append(data[match.start() : position])
        if data[match.end() - 1] == 0xDA:
            break
    return b"".join((*parts, data[position:]))


def _is_padding(data: bytes, warning: str) -> bool:
    """Whether stray bytes after the pixels are few, or fill the file up to a length, as some cameras do."""
    found = _EXTRANEOUS.match(warning)
    if found is None:
        return False
    count = int(found[1])
    if count <= _TOLERATED:
        return True
    end = _END_OF_SCAN.search(data, _pixels_begin(data))
    if end is None or data[end.end() - 1] != _EOI[1]:
        return False
    padding, before = data[end.start() - count : end.start()], data[: end.start() - count]
    # Zeros before the padding too: the decoder took the first of them for pixels.
    return padding.count(padding[:1]) == count and not before.endswith(8 * padding[:1])


def _has_zeroed_part(data: bytes, header: Header) -> bool:
    """Whether compressed data holds more zero bits than an encoder writes, as where a block of the file was lost.

    Zeros are a valid code. Only where the code of zeros alone means a flat block can an encoder repeat it, so other
    files are meant here: all colours in one scan, and a table in which that code has another meaning.
    """
    if not header.is_plain_jpeg or _ZEROS not in data:
        return False
    begin = _pixels_begin(data)
    end = _END_OF_SCAN.search(data, begin)
    if data.find(_ZEROS, begin, end.start() if end else len(data)) < 0:
        return False
    meanings: list[int] = []  # of the shortest code in each table of coefficients
    for marker, content in _segments(data[:begin] + _EOI):
        if marker == 0xDA and content[0] != header.channels:
            return False
        while marker == 0xC4 and len(content) > 17:
            count = sum(content[1:17])
            if content[0] >> 4 == 1 and count:
                meanings.append(content[17])
            content = content[17 + count :]
    return any(meanings)
