"""An image's size by its header: what Pillow decodes, with the orientation applied, for each format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from runtime.images import ImageError, image_size

SIZE_HW = (23, 31)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")


def content(kind: str, **options: object) -> bytes:
    """A drawn image, saved by Pillow."""
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """EXIF data that asks for an orientation."""
    made = Image.Exif()
    made[0x112] = orientation
    return made


@pytest.mark.parametrize("kind", FORMATS)
def test_the_size_is_pillows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.dat"  # the suffix does not matter
    path.write_bytes(content(kind))
    assert image_size(path) == SIZE_HW


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_applied(kind: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "image.dat"
    path.write_bytes(content(kind, exif=exif(orientation)))
    turned = ImageOps.exif_transpose(Image.open(path))
    assert image_size(path) == (turned.height, turned.width)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_header_that_ends_early_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.dat"
    path.write_bytes(content(kind)[:6])
    with pytest.raises(ImageError, match=r"ends early|damaged|known format"):
        image_size(path)


def test_what_is_no_image_is_refused_in_a_line(tmp_path: Path) -> None:
    for data, said in (
        (b"", "empty"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "a HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "an AVIF"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"hello, world", "not an image"),
    ):
        path = tmp_path / "image.jpg"
        path.write_bytes(data)
        with pytest.raises(ImageError, match=said):
            image_size(path)
    with pytest.raises(ImageError, match="check the path"):
        image_size(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="not a file"):
        image_size(tmp_path)
