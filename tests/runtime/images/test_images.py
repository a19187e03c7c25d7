from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.images import MAX_PIXELS, ImageError, decode
from runtime.images import decoding as images

ImageOps = pytest.importorskip("PIL.ImageOps", reason="as below")
Image = pytest.importorskip("PIL.Image", reason="Pillow makes the odd kinds of images; it comes with torchvision")

ORIENTATION = 274  # the EXIF tag


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)


def noise(height: int = 80, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def encoded(image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image, **options: object) -> bytes:
    return encoded(image, "JPEG", quality=95, subsampling=0, **options)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(height: int, width: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def test_png_and_jpeg_in_rgb_order(tmp_path: Path) -> None:
    image = gradient()
    assert difference(decode(encoded(image, "PNG")), image) == 0
    assert difference(decode(jpeg(image)), image) <= 6
    (tmp_path / "x.png").write_bytes(jpeg(image))  # the content decides, not the name
    found = decode(tmp_path / "x.png")
    assert difference(found, image) <= 6
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert difference(decode(str(tmp_path / "x.png")), found) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    image = gradient()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    # By the standard's table: what the stored row 0 and column 0 are in the upright image.
    upright = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image.transpose(1, 0, 2)[:, ::-1],
        7: image.transpose(1, 0, 2)[::-1, ::-1],
        8: image.transpose(1, 0, 2)[::-1],
    }[orientation]
    data = jpeg(image, exif=exif) if kind == "JPEG" else encoded(image, "PNG", exif=exif)
    assert difference(decode(data), upright) <= 6


def test_grey_palette_bilevel_and_transparent() -> None:
    image = Image.fromarray(gradient())
    for mode in ("L", "P", "1", "LA", "RGBA"):
        converted = image.convert(mode)
        assert difference(decode(encoded(converted, "PNG")), np.asarray(converted.convert("RGB"))) == 0
    assert difference(decode(jpeg(image.convert("L"))), np.asarray(image.convert("L").convert("RGB"))) <= 3


def test_transparency_is_dropped() -> None:
    image = Image.fromarray(gradient()).convert("RGBA")
    image.putalpha(0)
    assert difference(decode(encoded(image, "PNG")), gradient()) == 0


def test_sixteen_bits_become_eight() -> None:
    image = gradient()
    assert difference(decode(encoded(image[..., 0].astype(np.uint16) * 257, "PNG")), image[..., [0, 0, 0]]) == 0
    _, data = cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)
    assert difference(decode(data.tobytes()), image) == 0


def test_cmyk_has_its_colours() -> None:
    image = gradient()
    data = encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=98)
    assert b"Adobe" in data  # inverted values, as Photoshop writes them
    assert difference(decode(data), image) <= 12
    start = data.index(b"\xff\xee")  # the same without Adobe's marker
    plain = data[:start] + data[start + 2 + struct.unpack_from(">H", data, start + 2)[0] :]
    assert difference(decode(plain), image) <= 12


def test_progressive_jpeg_and_one_pixel() -> None:
    assert difference(decode(jpeg(noise(), progressive=True)), decode(jpeg(noise()))) <= 3
    for kind in ("PNG", "JPEG"):
        found = decode(encoded(np.full((1, 1, 3), 77, np.uint8), kind))
        assert found.shape == (1, 1, 3)
        assert difference(found, np.full((1, 1, 3), 77)) <= 2


def test_what_follows_the_end_marker_does_not_matter() -> None:
    assert decode(jpeg(gradient()) + b"junk").shape == (48, 64, 3)
    assert decode(encoded(gradient(), "PNG") + b"junk").shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("data", "end_marker_bytes"),
    [(jpeg(noise()), 2), (jpeg(noise(), progressive=True), 2), (encoded(noise(), "PNG"), 12)],
)
def test_a_file_cut_anywhere_is_refused_in_one_line(
    data: bytes, end_marker_bytes: int, capfd: pytest.CaptureFixture
) -> None:
    for length in [*range(1, 40), *range(40, len(data), len(data) // 60), len(data) - end_marker_bytes - 1]:
        with pytest.raises(ImageError, match=r"truncated|not an image of a known format") as caught:
            decode(data[:length])
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # OpenCV was not even asked


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "I;16"])
def test_a_png_that_lacks_only_its_end_marker_is_read_as_pillow_reads_it(mode: str) -> None:
    whole = encoded(
        noise()[..., 0].astype(np.uint16) * 257 if mode == "I;16" else Image.fromarray(noise()).convert(mode), "PNG"
    )
    assert whole.endswith(png_chunk(b"IEND", b""))
    for lost in (1, 4, 8, 11, 12):  # the marker is 12 bytes
        data = whole[:-lost]
        Image.open(io.BytesIO(data)).load()  # no error
        assert difference(decode(data), decode(whole)) == 0
    assert difference(decode(whole[:-12] + png_chunk(b"tEXt", b"note")[:-3]), decode(whole)) == 0
    for lost in (13, 16, 17, 20):  # of the pixels' part
        with pytest.raises(ImageError, match="truncated"):
            decode(whole[:-lost])


def test_a_png_without_its_end_marker_and_with_fewer_pixels_than_it_says(capfd: pytest.CaptureFixture) -> None:
    body = png_chunk(b"IDAT", zlib.compress(b"\0" + b"\1" * 64 * 3))
    with pytest.raises(ImageError, match="damaged"):
        decode(png_header(48, 64) + body)
    unpacked = zlib.compress(bytes(100_000_000))  # more than these pixels are
    with pytest.raises(ImageError, match="truncated"):
        decode(png_header(48, 64) + png_chunk(b"IDAT", unpacked))


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_of_32_bits_is_applied_as_pillow_applies_it(order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = mark + struct.pack(order + "IHHHIII", 8, 1, 274, 4, 1, 6, 0)
    data = jpeg(gradient(), exif=b"Exif\0\0" + exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == (48, 64)
    assert difference(decode(data), np.asarray(upright)) <= 3


def test_a_truncated_image_is_not_just_any_error() -> None:
    data = jpeg(noise())
    with pytest.raises(ImageError, match="truncated, the file ends early; copy or download it again"):
        decode(data[: len(data) // 2])


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="the checksum of its IDAT part is wrong"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"GIF89a" + b"\0" * 100, "the header says 0×0 pixels"),
        (b"hello", "not an image of a known format by its content; convert it to JPEG or PNG"),
        (b"\xff\xd8\xff\xd9", "without a frame header"),
        (b"\xff\xd8\xff\xe0\x00\x00\xff\xd9", "without a frame header"),  # a segment of length zero
        (png_header(0, 5) + png_chunk(b"IEND", b""), "the header says 5×0 pixels"),
        (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""), "does not begin with its header"),
    ],
)
def test_other_rubbish(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_a_png_whose_pixels_are_missing(capfd: pytest.CaptureFixture) -> None:
    body = png_chunk(b"IDAT", zlib.compress(b"\0" + b"\1" * 64 * 3)) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="damaged"):
        decode(png_header(48, 64) + body)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("1", (10_000, 10_000)), "PNG"),
        png_header(2**31 - 1, 2**31 - 1) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""),
        b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", 65535, 65535) + b"\0" * 10 + b"\xff\xd9",
    ],
    ids=["100 megapixels", "PNG bomb", "JPEG bomb"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=rf"megapixels, the limit is {MAX_PIXELS // 10**6}; scale it down"):
        decode(data)


def test_the_limit_can_be_set_and_is_inclusive() -> None:
    data = encoded(gradient(), "PNG")
    assert decode(data, max_pixels=48 * 64).shape == (48, 64, 3)
    with pytest.raises(ImageError, match="64×48"):
        decode(data, max_pixels=48 * 64 - 1)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "no.jpg", "cannot read the image: No such file or directory; check the path"),
        (tmp_path, "not a file"),
        ("a\0b", "not a file name|cannot read"),
    ):
        with pytest.raises(ImageError, match=message):
            decode(path)
    if hasattr(os, "mkfifo"):  # reading it would wait for ever
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ImageError, match="not a file"):
            decode(tmp_path / "pipe.jpg")


def test_messages_begin_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        decode(tmp_path / "x.jpg")
    assert str(caught.value).startswith(f"{tmp_path / 'x.jpg'}: ")
