"""Decodes JPEG files with libjpeg-turbo, and refuses those whose compressed data is damaged.

The decoder fills what it cannot read and goes on with a warning. OpenCV drops the warnings; simplejpeg raises the
first one, and gives the same pixels, also at a half, quarter or eighth of the size. This module judges the warning: a
file that is whole, with an oddity that cameras write, is read; any other is refused.

A byte that changed can leave a file that decodes without a warning; then nobody can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from .headers import Header

_EOI = b"\xff\xd9"
# A marker with a segment, or the end: not a stuffed zero, a fill byte, TEM or a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_TOLERATED = 16  # bytes between the pixels and the next marker that some cameras and editors leave
_READ_AHEAD = 16  # bytes; more than the decoder takes in beyond the pixels without counting them
_EARLY_END = "Premature end of JPEG file"
_MISSING = "Corrupt JPEG data: premature end of data segment"
_MOST_SCANS = 100  # encoders write about ten
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
    _require_few_scans(data)
    try:
        pixels = _decode(data, header, by, strict=True)
    except ValueError as error:
        data = _mended(data, header, str(error))
        pixels = _decode(data, header, by, strict=False)
    _require_all_parts(data, header)
    return pixels if header.channels != 4 else _decode_cmyk(data, by)


def check_jpeg(data: bytes, header: Header) -> bytes:
    """The file's bytes, with an end marker if it lacked one, for a decoder that does not tell of damage.

    All compressed data is read, but few pixels are made. Raises ValueError for a file that is truncated or damaged.
    """
    _require_few_scans(data)
    try:
        _decode(data, header, 8, strict=True)
    except ValueError as error:
        data = _mended(data, header, str(error))
    _require_all_parts(data, header)
    return data


def _require_few_scans(data: bytes) -> None:
    """Raise ValueError for a file made to keep the decoder busy, which goes over all pixels for each scan."""
    if data.count(b"\xff\xda") > _MOST_SCANS:
        scans = sum(segment.marker == 0xDA for segment in _segments(data))
        if scans > _MOST_SCANS:
            raise ValueError(f"damaged, {scans} scans are more than an encoder writes")


def _require_all_parts(data: bytes, header: Header) -> None:
    """Raise ValueError for a loss of which the decoder does not warn."""
    if not header.is_plain_jpeg and not _has_all_scans(data):
        raise ValueError("damaged, some of its scans are missing")
    if header.is_plain_jpeg and _has_zeroed_part(data, header):
        raise ValueError("damaged, a part of its compressed data is zeros")


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
    """The file without what the decoder warns of, if it is whole all the same. Raises ValueError if it isn't."""
    if _pixels_begin(data) >= len(data):
        raise ValueError(_TRUNCATED)
    has_no_end = warning == _EARLY_END
    if has_no_end:
        data = _ended(data)
        warning = _warning(data, header)
    # Zeros in the place of a file's end are no padding: the decoder took some of them for pixels.
    for mend in (_without_stray_bytes, _with_known_header, *(() if has_no_end else (_without_padding,))):
        if warning:
            data = mend(data, warning)
            warning = _warning(data, header)
    if warning == _EARLY_END or (has_no_end and not _has_all_scans(data)):
        raise ValueError(_TRUNCATED)
    if warning == _MISSING:
        raise ValueError(_TRUNCATED if has_no_end else "damaged, a part of its compressed data is missing")
    if warning and (has_no_end or not _is_harmless(warning)):
        raise ValueError(_TRUNCATED if has_no_end else f"damaged ({warning})")
    return data


def _is_harmless(warning: str) -> bool:
    """Whether a warning is about a few bytes before the end marker. Before another marker, pixels were lost."""
    stray = _EXTRANEOUS.match(warning)
    return stray is not None and int(stray[1]) <= _TOLERATED and int(stray[2], 16) == _EOI[1]


def _warning(data: bytes, header: Header) -> str:
    """The decoder's first warning; empty where it has none."""
    try:
        _decode(data, header, 8, strict=True)
    except ValueError as error:
        return str(error)
    return ""


class _Segment(NamedTuple):
    marker: int
    begin: int  # where the marker stands
    end: int
    content: bytes


def _segments(data: bytes) -> Iterator[_Segment]:
    """The file's segments up to the end marker, which is the last; compressed data and stray bytes lie between them."""
    position = 2
    while match := _MARKER.search(data, position):
        marker = data[match.end() - 1]
        if marker == _EOI[1]:
            yield _Segment(marker, match.start(), match.end(), b"")
            return
        length = max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
        position = match.end() + length
        yield _Segment(marker, match.start(), position, data[match.end() + 2 : position])


def _pixels_begin(data: bytes) -> int:
    """Where the compressed data of the first scan begins; the data's end if there is no scan."""
    return next((segment.end for segment in _segments(data) if segment.marker == 0xDA), len(data))


def _ended(data: bytes) -> bytes:
    """The file with the end marker that it lacks. Raises ValueError where the end of arithmetic codes is lost with it.

    Arithmetic codes can be decoded without their end, so the decoder would not warn.
    """
    if any(segment.marker in (0xC9, 0xCA) for segment in _segments(data)):
        raise ValueError(_TRUNCATED)
    return (data[:-1] if data.endswith(b"\xff") else data) + _EOI


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a file together have all bits of all coefficients of all components.

    A progressive file without its last scans is valid, but cameras and editors don't write it: a part of it is lost.
    """
    missing_bits: dict[tuple[int, int], int] = {}  # by component and coefficient: lower bits that no scan had yet
    components: tuple[int, ...] = ()
    for marker, _, _, content in _segments(data):
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
            components = tuple(content[6:-2:3])
        elif marker == 0xDA and content:
            count = content[0]
            first, last, bits = (*content[1 + 2 * count : 4 + 2 * count], 0, 0, 0)[:3]
            for component in content[1 : 1 + 2 * count : 2]:
                missing_bits |= {(component, at): bits & 15 for at in range(first, min(last, 63) + 1)}
    return not any(missing_bits.get((component, at), 1) for component in components for at in range(64))


def _without_stray_bytes(data: bytes, warning: str) -> bytes:
    """The file without the bytes in its header that belong to no segment."""
    if not _EXTRANEOUS.match(warning):
        return data
    parts, end = [data[:2]], 2
    for segment in _segments(data):
        parts.append(data[segment.begin : segment.end])
        end = segment.end
        if segment.marker == 0xDA:
            break
    return b"".join((*parts, data[end:]))


def _with_known_header(data: bytes, warning: str) -> bytes:
    """The file with the usual value where its header has one that the decoder warns of and does not use."""
    for marker, begin, end, content in _segments(data):
        changed = bytearray(content)
        if warning.startswith("Warning: unknown JFIF revision") and content.startswith(b"JFIF\0") and len(content) > 6:
            changed[5] = 1
        elif warning.startswith("Unknown Adobe color") and content.startswith(b"Adobe") and len(content) > 11:
            changed[11] = 1  # what the decoder takes for three channels
        elif warning.startswith("Invalid SOS parameters for sequential") and marker == 0xDA:
            changed[-3:] = b"\0\x3f\0"
        if changed != content:
            return data[: begin + 4] + bytes(changed) + data[end:]
    return data


def _without_padding(data: bytes, warning: str) -> bytes:
    """The file without the bytes of one value before its end marker, with which some cameras fill a file up."""
    stray = _EXTRANEOUS.match(warning)
    if stray is None:
        return data
    end = next((segment.begin for segment in _segments(data) if segment.marker == _EOI[1]), 0)
    count, padding = int(stray[1]), data[end - 1 : end]
    begin = end - count
    # More of the same before them: the decoder took some of them for pixels, so these were lost.
    if begin < 0 or data[begin:end] != count * padding or data[:begin].endswith(_READ_AHEAD * padding):
        return data
    return data[:begin] + data[end:]


def _has_zeroed_part(data: bytes, header: Header) -> bool:
    """Whether compressed data holds more zero bits than an encoder writes, as where a block of the file was lost.

    Zeros are a valid code. An encoder can repeat it only where the code of zeros alone means a flat block. Files of
    which that is not known are left: several scans, and tables in which that code has this meaning.
    """
    if _ZEROS not in data:
        return False
    meanings: list[int] = []  # of the shortest code in each table of coefficients
    begin = 0
    for marker, start, end, content in _segments(data):
        if begin:
            is_plain_end = marker == _EOI[1]
            return is_plain_end and any(meanings) and _ZEROS in data[begin:start].rstrip(b"\0")
        if marker == 0xDA:
            if content[:1] != bytes([header.channels]):
                return False
            begin = end
        while marker == 0xC4 and len(content) > 17:
            count = sum(content[1:17])
            if content[0] >> 4 == 1 and count:
                meanings.append(content[17])
            content = content[17 + count :]
    return False
