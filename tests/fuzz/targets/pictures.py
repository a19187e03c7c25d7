"""Pictures of every format, damaged in their bytes and in their structure, and videos. Pillow is the reference."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from PIL import Image, ImageOps

from runtime.errors import UserError
from runtime.images import decode, decode_image
from runtime.images.headers import opened, read_header
from runtime.images.strips import open_strips
from runtime.images.video import Video

from ..mutation import damaged
from ..target import Target, require

MAX_PIXELS = 4_000_000
FRAMES = 20  # of a video that are read
_PNG = 8  # bytes of its mark


@st.composite
def _damaged(draw: DrawFn, pictures: dict[str, bytes]) -> dict[str, bytes]:
    name = draw(st.sampled_from(sorted(pictures)))
    data = pictures[name]
    way = draw(st.sampled_from(("whole", "bytes", "bytes", "bytes", "structure", "structure", "cut")))
    if way == "structure" and name.endswith(".png"):
        data = draw(_png(data))
    elif way == "structure" and name.endswith(".jpg"):
        data = draw(_jpeg(data))
    elif way == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    elif way != "whole":
        data = draw(damaged(data))
    return {f"picture{Path(name).suffix}": data}


@st.composite
def _png(draw: DrawFn, data: bytes) -> bytes:
    """Chunks taken out, doubled, exchanged or changed, with checksums that fit."""
    chunks, at = [], _PNG
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    which = draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[which]
    match draw(st.sampled_from(("content", "content", "kind", "drop", "twice", "first"))):
        case "content":
            chunks[which] = kind, draw(damaged(content)) if content else b"\0"
        case "kind":
            kinds = (
                b"IHDR",
                b"PLTE",
                b"IDAT",
                b"IEND",
                b"tRNS",
                b"gAMA",
                b"acTL",
                b"eXIf",
                b"zTXt",
                b"iCCP",
                b"\0\0\0\0",
            )
            chunks[which] = draw(st.sampled_from(kinds)), content
        case "drop":
            del chunks[which]
        case "twice":
            chunks.insert(which, chunks[which])
        case "first":
            chunks.insert(0, chunks.pop(which))
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return data[:_PNG] + b"".join(parts)


@st.composite
def _jpeg(draw: DrawFn, data: bytes) -> bytes:
    """Segments before the compressed data taken out, doubled, exchanged or changed; or a hole in the data."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        segments.append(data[at : at + 2 + length])
        at += 2 + length
    rest = bytearray(data[at:])
    which = draw(st.integers(0, len(segments) - 1))
    match draw(st.sampled_from(("content", "drop", "twice", "first", "size", "hole", "hole"))):
        case "content":
            segments[which] = draw(damaged(segments[which], first=4))
        case "drop":
            del segments[which]
        case "twice":
            segments.insert(which, segments[which])
        case "first":
            segments.insert(0, segments.pop(which))
        case "size":
            frames = [i for i, segment in enumerate(segments) if segment[1] in (0xC0, 0xC1, 0xC2)]
            size = struct.pack(">HH", draw(st.integers(0, 65535)), draw(st.integers(0, 65535)))
            for i in frames:
                segments[i] = segments[i][:5] + size + segments[i][9:]
        case "hole":
            begin = draw(st.integers(12, max(12, len(rest) - 3)))
            del rest[begin : begin + draw(st.integers(1, 200))]
            rest += b"\xff\xd9"
    return data[:2] + b"".join(segments) + bytes(rest)


def reference(data: bytes) -> np.ndarray | None:
    """The picture as Pillow reads it, uint8 [h, w, 3] RGB with its orientation applied; None where it refuses it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode in ("I;16", "I", "I;16B", "F"):
                return None  # another reduction to 8 bits
            turned = ImageOps.exif_transpose(image)
            if turned.mode == "P" or "transparency" in turned.info:
                turned = turned.convert("RGBA")
            return np.asarray(turned.convert("RGB"))
    except Exception:  # it has a dozen types, MemoryError among them
        return None


def _read(folder: Path, seeds: Path) -> str:
    (path,) = folder.glob("picture*")
    data = path.read_bytes()
    pixels = decode(path, max_pixels=MAX_PIXELS)
    require(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, f"{pixels.dtype} {pixels.shape}")
    require(pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS, f"{pixels.shape[:2]} is above the limit")
    require(np.array_equal(decode(data, max_pixels=MAX_PIXELS), pixels), "other pixels from bytes than from the file")
    reduced = decode_image(
        path, lambda size_hw: 2 if size_hw[0] % 2 == size_hw[1] % 2 == 0 else 1, max_pixels=MAX_PIXELS
    )
    require(reduced.size_hw == pixels.shape[:2], f"{reduced.size_hw} decoded at a half, {pixels.shape[:2]} as a whole")
    theirs = reference(data)
    if theirs is None:
        return "accepted, Pillow has none"
    require(theirs.shape == pixels.shape, f"{pixels.shape}, by Pillow {theirs.shape}")
    # Decoders round differently, and smooth chroma differently; a damaged block differs by much more.
    worst = float(np.abs(theirs.astype(int) - pixels.astype(int)).mean(axis=2).max())
    exact = data.startswith((b"\x89PNG", b"BM"))
    require(worst <= (0 if exact else 60), f"pixels differ from Pillow's by {worst:.0f}")
    _require_no_warning(data)
    return f"{pixels.shape[:2]}"


def _require_no_warning(data: bytes) -> None:
    """A JPEG of which libjpeg says that its data is damaged must not be accepted.

    Harmless are a missing end mark and bytes between the segments of the header, which every decoder skips.
    """
    if not data.startswith(b"\xff\xd8"):
        return
    import simplejpeg

    faults = []
    for tried in (data, data + b"\xff\xd9", _without_padding(data), _without_padding(data) + b"\xff\xd9"):
        try:
            simplejpeg.decode_jpeg(tried, strict=True)
            return
        except ValueError as error:
            faults.append(str(error))
    # CMYK and the like are nothing that simplejpeg converts, which is no damage.
    damage = any("orrupt" in fault or "extraneous" in fault or "remature" in fault for fault in faults)
    require(not damage, f"accepted although libjpeg says: {faults[-1][:100]}")


def _without_padding(data: bytes) -> bytes:
    """A JPEG without what stands between the segments of its header."""
    kept, at = [data[:2]], 2
    while (found := re.compile(rb"\xff[\x01-\xfe]").search(data, at)) is not None:
        at = found.start()
        if data[at + 1] == 0xDA:
            return b"".join(kept) + data[at:]
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        kept.append(data[at : at + 2 + length])
        at += 2 + max(2, length)
    return data


def _pictures(seeds: Path, *suffixes: str) -> dict[str, bytes]:
    files = sorted((seeds / "pictures").iterdir())
    return {path.name: path.read_bytes() for path in files if path.suffix in suffixes}


@st.composite
def _videos(draw: DrawFn, films: dict[str, bytes]) -> dict[str, bytes]:
    name = draw(st.sampled_from(sorted(films)))
    return {name: draw(damaged(films[name])) if draw(st.integers(0, 9)) else films[name]}


def _read_video(folder: Path, seeds: Path) -> str:
    """OpenCV does not tell that a frame is damaged: FFmpeg's own lines on stderr are all that says so."""
    (path,) = folder.glob("film*")
    count = 0
    with Video(path) as video:
        require(0 < video.frames_per_second <= 1000, f"{video.frames_per_second} frames a second")
        require(video.frames_announced >= 0, f"{video.frames_announced} frames announced")
        for frame in video.frames():
            require(frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, f"a frame of {frame.shape}")
            count += 1
            if count == FRAMES:
                break
    return f"{count} frames"


def _size_of(folder: Path, seeds: Path) -> str:
    """The size by the header is that of the decoded picture, wherever both are read."""
    from runtime.images.size import image_size

    (path,) = folder.glob("picture*")
    size_hw = image_size(path)
    require(min(size_hw) >= 1, f"a size of {size_hw}")
    try:
        pixels = decode(path, max_pixels=MAX_PIXELS)
    except UserError:
        return f"{size_hw}, not decoded"
    require(pixels.shape[:2] == size_hw, f"{size_hw} by the header, {pixels.shape[:2]} decoded")
    return f"{size_hw}"


def _read_strips(folder: Path, seeds: Path) -> str:
    """Strips have the size of the header, and the pixels of the whole file where that is decoded."""
    (path,) = folder.glob("picture*")
    with opened(path) as file:
        header = read_header(file, str(path))
    height, width = header.stored_hw
    if height * width > MAX_PIXELS:
        return "larger than what is tried"
    image = open_strips(path, header, width * 9)
    if image is None:
        return "not in strips"
    strips = list(image.strips())
    require(all(strip.dtype == np.uint8 and strip.shape[1:] == (width, 3) for strip in strips), "strips of other sizes")
    require(sum(map(len, strips)) == height, "strips of another height")
    try:
        pixels = decode(path, max_pixels=MAX_PIXELS)
    except UserError:
        return f"{height}×{width} in strips, the whole is refused"
    require(np.array_equal(np.concatenate(strips), pixels), "other pixels in strips than in the whole file")
    return f"{height}×{width} in strips"


TARGETS = {
    "strips": Target(
        lambda seeds: _damaged(_pictures(seeds, ".png", ".bmp", ".tif")), _read_strips, 1, 40, may_print=True
    ),
    "JPEG": Target(lambda seeds: _damaged(_pictures(seeds, ".jpg")), _read, 3, 60),
    # libpng and libtiff print a line of their own beside the error.
    "PNG": Target(lambda seeds: _damaged(_pictures(seeds, ".png")), _read, 2, 40, may_print=True),
    "BMP, TIFF and WebP": Target(
        lambda seeds: _damaged(_pictures(seeds, ".bmp", ".tif", ".webp")), _read, 2, 40, may_print=True
    ),
    "sizes by headers": Target(
        lambda seeds: _damaged(_pictures(seeds, ".jpg", ".png", ".bmp", ".tif", ".webp")),
        _size_of,
        1,
        40,
        may_print=True,
    ),
    "videos": Target(
        lambda seeds: _videos({path.name: path.read_bytes() for path in seeds.glob("film.*")}),
        _read_video,
        0.5,
        15,
        may_print=True,
    ),
}
