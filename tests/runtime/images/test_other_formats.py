"""WebP, BMP, TIFF, GIF and PNM: Pillow's pixels in RGB, the first image of the file, and no file without its end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from runtime.images import MAX_PIXELS, SUFFIXES, ImageError, decode, image_size
from runtime.images.sources import find_sources

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def decoded_or_line(data: bytes) -> np.ndarray | str:
    """The pixels of a file, or the one line that says what is wrong with it."""
    try:
        return decode(data)
    except ImageError as error:
        line = str(error)
    assert "\n" not in line
    return line


FILES: dict[str, bytes] = {
    "WebP": saved("WEBP"),
    "WebP, lossless": saved("WEBP", lossless=True),
    "WebP, transparent": saved("WEBP", "RGBA", lossless=True),
    "WebP, animated": saved("WEBP", save_all=True, append_images=[Image.new("RGB", (53, 37))], lossless=True),
    "BMP": saved("BMP"),
    "BMP, grey": saved("BMP", "L"),
    "BMP, palette": saved("BMP", "P"),
    "BMP, one bit": saved("BMP", "1"),
    "BMP, transparent": saved("BMP", "RGBA"),
    "TIFF": saved("TIFF"),
    "TIFF, grey": saved("TIFF", "L"),
    "TIFF, one bit": saved("TIFF", "1"),
    "TIFF, palette": saved("TIFF", "P"),
    "TIFF, CMYK": saved("TIFF", "CMYK"),
    "TIFF, transparent": saved("TIFF", "RGBA"),
    "TIFF, LZW": saved("TIFF", compression="tiff_lzw"),
    "TIFF, deflate": saved("TIFF", compression="tiff_deflate"),
    "TIFF, fax": saved("TIFF", "1", compression="group4"),
    "TIFF, JPEG inside": saved("TIFF", compression="jpeg"),
    "TIFF, pages": saved("TIFF", save_all=True, append_images=[Image.new("RGB", (3, 5))]),
    "TIFF, big": saved("TIFF", big_tiff=True),
    "GIF": saved("GIF"),
    "GIF, animated": saved("GIF", save_all=True, append_images=[Image.new("RGB", (53, 37))]),
    "PPM": saved("PPM"),
    "PGM": saved("PPM", "L"),
    "PBM": saved("PPM", "1"),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_pillows(kind: str, tmp_path: Path) -> None:
    wanted = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    np.testing.assert_array_equal(decode(FILES[kind]), wanted)
    path = tmp_path / "image.jpg"  # a wrong suffix
    path.write_bytes(FILES[kind])
    np.testing.assert_array_equal(decode(path), wanted)
    assert image_size(path) == wanted.shape[:2]


@pytest.mark.parametrize("suffix", [".tiff", ".png", ".ppm", ".pgm"])
def test_sixteen_bits_become_their_upper_eight(suffix: str) -> None:
    wide = PIXELS.astype(np.uint16) * 256 + 3
    wide = wide[..., 0] if suffix == ".pgm" else wide
    data = cv2.imencode(suffix, wide)[1].tobytes()
    wanted = PIXELS[..., [0, 0, 0]] if suffix == ".pgm" else PIXELS[..., ::-1]
    assert np.abs(decode(data).astype(int) - wanted).max() <= 1  # some libraries round


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "image"
    path.write_bytes(saved(kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    np.testing.assert_array_equal(decode(path), wanted)
    assert image_size(path) == wanted.shape[:2]


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The end of some files holds no pixels; what is read has all of them."""
    data, wanted = FILES[kind], decode(FILES[kind])
    for length in [*range(0, 40), *range(40, len(data), max(1, len(data) // 40))]:
        found = decoded_or_line(data[:length])
        if isinstance(found, np.ndarray):
            assert length > len(data) // 3
            np.testing.assert_array_equal(found, wanted)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", FILES)
def test_a_size_that_the_header_does_not_mean_is_refused(kind: str) -> None:
    """Each byte of the beginning, changed: an image, or one line."""
    for at in range(2, 60):
        for value in (0, 0x7F, 0xFF):
            changed = bytearray(FILES[kind])
            changed[at % len(changed)] = value
            found = decoded_or_line(bytes(changed))
            if isinstance(found, np.ndarray):
                assert found.ndim == 3
                assert found.shape[0] * found.shape[1] <= MAX_PIXELS


def test_samples_of_an_unknown_range_are_refused() -> None:
    for data in (saved("TIFF", "F"), saved("TIFF", "I"), saved("TIFF", "LAB")):
        with pytest.raises(ImageError, match=r"Pillow's mode .*convert it to 8 or 16 bits"):
            decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"BM" + bytes(12) + (40).to_bytes(4, "little") + (1 << 20).to_bytes(4, "little") * 2 + bytes(64),
        b"RIFF\xff\xff\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff" + bytes(64),
        b"GIF89a\xff\xff\xff\xff" + bytes(64),
        b"P6 99999999 99999999 255 " + bytes(64),
        b"II*\0\x08\0\0\0\x02\0" + b"\0\1\4\0\1\0\0\0\xff\xff\0\0" + b"\1\1\4\0\1\0\0\0\xff\xff\0\0" + bytes(8),
    ],
    ids=["BMP", "WebP", "GIF", "PNM", "TIFF"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"megapixels, the limit is 64; scale it down, or raise --max-megapixels"):
        decode(data)


@pytest.mark.parametrize(
    ("begin", "name"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x20ftypmif1", "a HEIC"),
        (b"\0\0\0\x20ftypavif", "an AVIF"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (b"\xff\x0a\x00", "a JPEG XL"),
        (b"%PDF-1.7", "a PDF"),
        (b"<svg xmlns=", "SVG"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    ],
)
def test_a_format_that_is_not_read_is_named(begin: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=name) as caught:
        decode(begin + bytes(100))
    assert "convert it to JPEG or PNG" in str(caught.value)


def test_a_preview_is_not_taken_for_a_cameras_raw_image() -> None:
    tags = b"\xfe\0\4\0\1\0\0\0\1\0\0\0" + b"\0\1\4\0\1\0\0\0\5\0\0\0" + b"\1\1\4\0\1\0\0\0\5\0\0\0"
    with pytest.raises(ImageError, match="only a preview"):
        decode(b"II*\0\x08\0\0\0\x03\0" + tags + bytes(100))


def test_a_folder_has_all_suffixes(tmp_path: Path) -> None:
    for number, suffix in enumerate(SUFFIXES):
        (tmp_path / f"{number}{suffix.upper() if number % 2 else suffix}").write_bytes(b"")
    assert len(find_sources([tmp_path], tmp_path / "out")) == len(SUFFIXES)
