"""Reads image files' headers: the format by content, the stored size, and the EXIF orientation, without decoding.

A reader gets an open binary file and seeks over what it does not need, so a header costs little in a large file. Each
reader raises struct.error where the file ends early, and ValueError for a header that cannot be true.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import UserError

_SIGNATURE_BYTES = 32
_ORIENTATION = 274  # EXIF's and TIFF's tag
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_SUBFILE = 256, 257, 254
_TILE_WIDTH, _TILE_HEIGHT, _LARGEST_TILE = 322, 323, 1 << 16  # px
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


class ImageError(UserError):
    """An image that cannot be read."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before its pixels."""

    format: str  # "JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF" or "PNM"
    stored_hw: tuple[int, int]  # height and width as stored
    orientation: int = 1  # EXIF's, 1 to 8
    channels: int = 3  # of a JPEG: 4 are CMYK
    is_plain_jpeg: bool = False  # one of Huffman codes, and not progressive

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image after its orientation is applied."""
        height, width = self.stored_hw
        return (width, height) if self.orientation >= 5 else (height, width)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """An image file, open for reading. Raises ImageError, also for an error while the block reads."""
    name = os.fspath(path)
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ImageError(f"{name}: not a file; expected an image")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ImageError(f"{name}: cannot read the image: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{name!r}: not a file name ({error})") from error


def read_header(file: BinaryIO, name: str) -> Header:
    """The header of an open image file. Raises ImageError that begins with `name`; OSError if the file can't be read.

    The format is that of the content, whatever the file's suffix says.
    """
    signature = file.read(_SIGNATURE_BYTES)
    if not signature:
        raise ImageError(f"{name}: the file is empty; copy or download it again")
    reader = _reader_of(signature, name)
    file.seek(0)
    try:
        header = reader(file)
    except (struct.error, IndexError, OverflowError) as error:  # also an offset that no file has
        raise ImageError(f"{name}: truncated, the file ends early; copy or download it again") from error
    except ValueError as error:
        raise ImageError(f"{name}: {error}; copy or download it again") from error
    height, width = header.stored_hw
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the header says {width}×{height} pixels; copy or download it again")
    return header


_Reader = Callable[[BinaryIO], Header]


def _reader_of(signature: bytes, name: str) -> _Reader:
    """The reader of the header of the format that a file's first bytes show.

    Raises ImageError for another format, which is named where it is a known one.
    """
    if signature.startswith(b"RIFF") and signature[8:12] == b"WEBP":
        return _webp
    for begin, reader in _READ:
        if signature.startswith(begin):
            return reader
    if signature[:1] == b"P" and signature[1:2] in b"123456" and signature[2:3] in b" \t\r\n#":
        return _pnm
    known = _foreign_format(signature)
    said = f"{known}, which is not read" if known else "not an image of a known format by its content"
    raise ImageError(f"{name}: {said}; convert it to JPEG or PNG")


def exif_orientation(data: bytes) -> int:
    """The orientation, 1 to 8, that a block of EXIF data asks for; 1 where it does not say, or is damaged."""
    data = data.removeprefix(b"Exif\0\0")
    try:
        order = _byte_order(data)
        (first,) = struct.unpack_from(order + "I", data, 4)
        (entries,) = struct.unpack_from(order + "H", data, first)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", data, first + 2 + 12 * entry)
            if tag == _ORIENTATION:
                if kind == 4:  # 32 bits instead of 16, which decoders read too
                    (value,) = struct.unpack_from(order + "I", data, first + 10 + 12 * entry)
                return value if kind in (3, 4) and 1 <= value <= 8 else 1
    except (struct.error, ValueError):
        pass
    return 1


def _byte_order(data: bytes) -> str:
    if data[:2] not in (b"II", b"MM"):
        raise ValueError("damaged, neither of TIFF's two byte orders")
    return "<" if data[:2] == b"II" else ">"


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    """The next values of the file. struct.error if it ends first."""
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _jpeg(file: BinaryIO) -> Header:
    """Segments up to the frame header; the orientation stands before it."""
    file.seek(2)
    orientation = 1
    while True:
        marker = _next_jpeg_marker(file)
        if marker in (0xD9, 0xDA):
            raise ValueError("damaged, a JPEG without a frame header")
        (length,) = _unpack(file, ">H")
        end = file.tell() + max(0, length - 2)
        if marker in _JPEG_FRAMES:
            _, height, width, channels = _unpack(file, ">BHHB")
            _unpack(file, f"{3 * channels}s")
            return Header("JPEG", (height, width), orientation, channels, marker in (0xC0, 0xC1))
        if marker == 0xE1:
            content = file.read(max(0, length - 2))
            if content.startswith(b"Exif\0\0"):
                orientation = exif_orientation(content)
        file.seek(end)


def _next_jpeg_marker(file: BinaryIO) -> int:
    """The next marker with a length, or that ends the image; bytes that belong to no segment are skipped."""
    while True:
        (byte,) = _unpack(file, "B")
        while byte != 0xFF:
            (byte,) = _unpack(file, "B")
        while byte == 0xFF:
            (byte,) = _unpack(file, "B")
        if byte and byte not in _JPEG_WITHOUT_LENGTH:
            return byte


def _png(file: BinaryIO) -> Header:
    """IHDR, and eXIf, which may stand before or after the pixels."""
    file.seek(8)
    length, kind, width, height = struct.unpack(">I4sII", file.read(16))
    if kind != b"IHDR":
        raise ValueError("damaged, a PNG that does not begin with its header")
    file.seek(16 + length + 4)  # past IHDR and its checksum
    while True:
        head = file.read(8)
        if len(head) < 8:
            return Header("PNG", (height, width))  # whether the file is whole is for the decoder to say
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return Header("PNG", (height, width), exif_orientation(file.read(length)))
        if kind == b"IEND":
            return Header("PNG", (height, width))
        file.seek(length + 4, os.SEEK_CUR)


def _webp(file: BinaryIO) -> Header:
    """The first chunk has the size; an EXIF chunk follows the pixels."""
    file.seek(12)
    head = file.read(18)
    kind = head[:4]
    if kind == b"VP8X":
        flags = head[8]
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (12, 15))
        if len(head) < 18:
            raise IndexError("no canvas size")
        return Header("WebP", (height, width), _webp_orientation(file) if flags & 0x08 else 1)
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", head, 8)
        if signature != 0x2F:
            raise ValueError("damaged, a lossless WebP without its signature")
        return Header("WebP", ((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1))
    if kind == b"VP8 ":
        code, width, height = struct.unpack_from("<3s2H", head + file.read(4), 11)
        if code != b"\x9d\x01\x2a":
            raise ValueError("damaged, a WebP whose pixels do not begin with a key frame")
        return Header("WebP", (height & 0x3FFF, width & 0x3FFF))
    raise ValueError("damaged, a WebP without a header")


def _webp_orientation(file: BinaryIO) -> int:
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            return exif_orientation(file.read(length))
        file.seek(length + length % 2, os.SEEK_CUR)
    return 1


def _bmp(file: BinaryIO) -> Header:
    file.seek(14)
    (header,) = _unpack(file, "<I")
    width, height = _unpack(file, "<HH" if header == 12 else "<ii")
    return Header("BMP", (abs(height), width))  # rows from the top down have a negative height


def _gif(file: BinaryIO) -> Header:
    file.seek(6)
    width, height = _unpack(file, "<HH")
    return Header("GIF", (height, width))


def _pnm(file: BinaryIO) -> Header:
    """Width and height are the first two numbers after the kind; comments run from # to the line's end."""
    file.seek(2)
    numbers: list[int] = []
    text = b""
    while len(numbers) < 2:
        (byte,) = struct.unpack("c", file.read(1))
        if byte == b"#":
            file.readline(1 << 16)
            byte = b"\n"
        if byte.isdigit() and len(text) < 9:
            text += byte
        elif not byte.isspace():
            raise ValueError("damaged, a PNM header with something else than numbers")
        elif text:
            numbers.append(int(text))
            text = b""
    return Header("PNM", (numbers[1], numbers[0]))


def _tiff(file: BinaryIO) -> Header:
    """Tags of the first page."""
    start = file.read(16)
    order = _byte_order(start)
    is_big = struct.unpack_from(order + "H", start, 2) == (43,)
    (first,) = struct.unpack_from(order + ("Q" if is_big else "I"), start, 8 if is_big else 4)
    count_layout, entry_bytes, value_at = (order + "Q", 20, 12) if is_big else (order + "H", 12, 8)
    file.seek(first)
    (entries,) = _unpack(file, count_layout)
    if entries > 0xFFFF:
        raise ValueError(f"damaged, a TIFF whose first page has {entries} tags")
    tags: dict[int, int] = {}
    for _ in range(entries):
        entry = file.read(entry_bytes)
        tag, kind = struct.unpack_from(order + "HH", entry)
        layout = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if layout is not None:
            (tags[tag],) = struct.unpack_from(order + layout, entry.ljust(entry_bytes, b"\0"), value_at)
    if _TIFF_WIDTH not in tags or _TIFF_HEIGHT not in tags:
        raise ValueError("damaged, a TIFF whose first page has no size")
    if max(tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)) > _LARGEST_TILE:
        raise ValueError("damaged, a TIFF whose tiles are larger than any")
    if tags.get(_TIFF_SUBFILE, 0) & 1:
        raise ValueError("its first page is only a preview, as in a camera's raw file; convert it to JPEG or PNG")
    turned = tags.get(_ORIENTATION, 1)
    return Header("TIFF", (tags[_TIFF_HEIGHT], tags[_TIFF_WIDTH]), turned if 1 <= turned <= 8 else 1)


_READ: tuple[tuple[bytes, _Reader], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"BM", _bmp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"II+\0", _tiff),
    (b"MM\0+", _tiff),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
)
# Formats that are refused by name.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop file"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\0\0\x01\0", "an icon"),
    (b"%PDF", "a PDF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file (git lfs pull fetches it)"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")


def _foreign_format(signature: bytes) -> str | None:
    """The name of a format that is recognised only to be refused."""
    for begin, known in _FOREIGN:
        if signature.startswith(begin):
            return known
    if signature[4:8] == b"ftyp":
        if signature[8:12] in (b"avif", b"avis"):
            return "an AVIF image"
        return "a HEIC (HEIF) image" if signature[8:12] in _HEIF_BRANDS else "a video file"
    text = signature.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")):
        return "XML or SVG text"
    return "a web page instead of an image" if text.startswith((b"<!doc", b"<html")) else None
