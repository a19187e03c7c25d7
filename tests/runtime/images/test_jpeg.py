"""JPEGs: OpenCV's pixels, the oddities that cameras write, and damage in the compressed data."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.images import ImageError, decode, decode_image
from runtime.images.decoding import decode_by

REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def photo(height: int = 160, width: int = 240) -> np.ndarray:
    """Smooth shapes with grain, so that the compressed data is long and has no restart."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)


def saved(mode: str = "RGB", pixels: np.ndarray | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo() if pixels is None else pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def with_restarts() -> bytes:
    return cv2.imencode(".jpg", photo(), [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])[1].tobytes()


KINDS: dict[str, bytes] = {
    "4:2:0": saved(quality=90),
    "4:2:2": saved(quality=90, subsampling=1),
    "4:4:4": saved(quality=98, subsampling=0),
    "low quality": saved(quality=10),
    "optimized tables": saved(quality=85, optimize=True),
    "progressive": saved(quality=85, progressive=True),
    "grey": saved("L", quality=90),
    "CMYK": saved("CMYK", quality=90),
    "RGB": saved(quality=90, keep_rgb=True),
    "restarts": with_restarts(),
    "odd size": saved(pixels=photo(121, 83), quality=90),
    "one pixel": saved(pixels=photo(1, 1)),
    "black": saved(pixels=np.zeros((400, 600, 3), np.uint8), optimize=True),
    "black, progressive": saved(pixels=np.zeros((400, 600, 3), np.uint8), progressive=True),
}
PHOTOS = ["4:2:0", "4:4:4", "optimized tables", "progressive", "grey", "CMYK", "restarts"]


@pytest.mark.parametrize("by", REDUCED)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_opencvs(kind: str, by: int) -> None:
    wanted = cv2.imdecode(np.frombuffer(KINDS[kind], np.uint8), REDUCED[by])[..., ::-1]
    height, width = decode(KINDS[kind]).shape[:2]
    if height % by or width % by:
        pytest.skip("a divisor divides both sides")
    found = decode_image(KINDS[kind], lambda _: by)
    np.testing.assert_array_equal(found.pixels, wanted)
    assert found.size_hw == (height, width)


def header_end(data: bytes) -> int:
    """Where the first segment after the start marker ends."""
    return 4 + struct.unpack_from(">H", data, 4)[0]


def first_scan(data: bytes) -> int:
    """Where the header of the first scan begins."""
    return data.index(b"\xff\xda")


def exif_with_thumbnail(data: bytes) -> bytes:
    thumbnail = saved(pixels=photo(16, 16))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(thumbnail)) + b"Exif\0\0" + thumbnail + data[2:]


def scan_parameters(data: bytes) -> bytes:
    """Zeros where a sequential scan says which coefficients it has, as some cameras write."""
    at = first_scan(data) + 5 + 2 * data[first_scan(data) + 4]
    return data if b"\xff\xc2" in data else data[:at] + bytes(3) + data[at + 3 :]


ODD: dict[str, Callable[[bytes], bytes]] = {
    "no end": lambda data: data[:-2],
    "half an end": lambda data: data[:-1],
    "bytes after the end": lambda data: data + b"anything" * 100,
    "zeros after the end": lambda data: data + bytes(4096),
    "a second image": lambda data: data + saved(),
    "a thumbnail": exif_with_thumbnail,
    "stray bytes in the header": lambda data: data[: header_end(data)] + b"stray" + data[header_end(data) :],
    "stray bytes before the scan": lambda data: data[: first_scan(data)] + bytes(40) + data[first_scan(data) :],
    "fill bytes": lambda data: data[: header_end(data)] + b"\xff" * 9 + data[header_end(data) :],
    "a byte before the end": lambda data: data[:-2] + b"\0" + data[-2:],
    "two bytes before the end": lambda data: data[:-2] + b"ab" + data[-2:],
    "padding before the end": lambda data: data[:-2] + bytes(777) + data[-2:],
    "another version of JFIF": lambda data: data.replace(b"JFIF\0\1", b"JFIF\0\7"),
    "parameters of the scan": scan_parameters,
}


@pytest.mark.parametrize("oddity", ODD)
@pytest.mark.parametrize("kind", PHOTOS)
def test_a_whole_image_with_an_oddity_is_read(kind: str, oddity: str) -> None:
    data = ODD[oddity](KINDS[kind])
    np.testing.assert_array_equal(decode(data), decode(KINDS[kind]))
    if KINDS[kind][6:10] == b"JFIF":
        seen: list[bytes] = []
        decode_by(lambda data: seen.append(data), data)
        assert len(seen) == 1, "another decoder gets the file too"


def middle(data: bytes) -> int:
    """The middle of the compressed data."""
    return (first_scan(data) + len(data)) // 2


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "second half zeros": lambda data: data[: middle(data)] + bytes(len(data) - middle(data) - 2) + data[-2:],
    "zeros to the end": lambda data: data[: middle(data)] + bytes(len(data) - middle(data)),
    "middle third cut out": lambda data: data[: len(data) // 3] + data[2 * len(data) // 3 :],
    "second half ones": lambda data: data[: middle(data)] + b"\xff" * (len(data) - middle(data) - 2) + data[-2:],
    "second half lost, with an end": lambda data: data[: middle(data)] + b"\xff\xd9",
    "a part twice": lambda data: data[: middle(data)] + data[middle(data) - 500 :],
    "another file's bytes": lambda data: data[: middle(data)] + saved()[: len(data) - middle(data) - 2] + data[-2:],
    "cut in the middle": lambda data: data[: middle(data)],
    "three bytes cut off": lambda data: data[:-3],
    "zeros instead of the end": lambda data: data[:-2] + bytes(777),  # how many of them were pixels can't be told
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("kind", PHOTOS)
def test_damage_is_refused_in_one_line(kind: str, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = DAMAGED[damage](KINDS[kind])
    for call in (decode, lambda data: decode_by(lambda _: pytest.fail("decoded"), data)):
        with pytest.raises(ImageError, match=r"truncated|damaged") as caught:
            call(data)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_bytes_before_a_restart_marker_are_lost_pixels() -> None:
    data = with_restarts()
    at = data.index(b"\xff\xd0", first_scan(data))
    with pytest.raises(ImageError, match="damaged"):
        decode(data[:at] + b"twelve bytes" + data[at:])


def test_a_lost_block_of_zeros_is_noticed_though_the_decoder_says_nothing() -> None:
    data = KINDS["4:4:4"]
    for length in (512, 1024, 4096):
        for begin in range(first_scan(data) + 700, len(data) - length - 700, 997):
            with pytest.raises(ImageError, match="damaged"):
                decode(data[:begin] + bytes(length) + data[begin + length :])


def test_a_file_of_many_scans_is_refused_before_it_is_decoded() -> None:
    data = KINDS["progressive"]
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="scans are more than an encoder writes"):
        decode(data[:-2] + 200 * last_scan + data[-2:])
    film = 200 * saved(pixels=photo(16, 16))  # images one after the other: the first is read
    np.testing.assert_array_equal(decode(film), decode(saved(pixels=photo(16, 16))))


def test_a_progressive_file_that_lost_its_last_scan_is_truncated() -> None:
    data = KINDS["progressive"]
    with pytest.raises(ImageError, match="truncated"):
        decode(data[: data.rindex(b"\xff\xc4")])  # what is left is whole scans, without an end
