"""What `Detector` takes as an image, and the one line for what it doesn't take."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError
from runtime.tta import MultiScaleDetector

from ..support.fakes import RedBackend, red_image

IMAGE = red_image(60, 80, (8, 12, 72, 56))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), IMAGE[..., ::-1])
    return path


def same(found: Detections, wanted: Detections) -> None:
    for field in dataclasses.fields(Detections):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))


TAKEN: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "path": Path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "Pillow": Image.open,
    "Pillow with transparency": lambda path: Image.open(path).convert("RGBA"),
    "array": lambda path: IMAGE,
    "planes": lambda path: np.ascontiguousarray(IMAGE.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_each_kind_of_image_has_the_files_detections(kind: str, path: Path) -> None:
    detector = Detector(RedBackend())
    wanted = detector(path)
    assert len(wanted.boxes) > 0
    with ExitStack() as opened:

        def made() -> Any:
            value = TAKEN[kind](path)
            return opened.enter_context(value) if hasattr(value, "read") or isinstance(value, Image.Image) else value

        same(detector(made()), wanted)
        for several in ([made(), made()], (made(), made())):
            for found in detector(several):
                same(found, wanted)
        for found in detector(one for one in [made(), made()]):
            assert isinstance(found, Detections)
            same(found, wanted)


def test_pillows_image_is_turned_as_the_file_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(IMAGE).save(path, exif=exif)
    detector = Detector(RedBackend())
    with Image.open(path) as image:
        same(detector(image), detector(path))


def test_multi_scale_testing_takes_pillows_image(path: Path) -> None:
    detector = MultiScaleDetector(Detector(RedBackend()), [64, 96])
    (wanted,) = detector.detect([IMAGE])
    with Image.open(path) as image:
        (found,) = detector.detect([image])  # type: ignore[list-item]
    same(found, wanted)


@pytest.mark.parametrize(
    "value",
    [None, 3, 2.5, True, object(), {}, {"a.jpg": 1}, {"a.jpg"}, len, Detector, np.float32(1), 1j, range],
    ids=lambda value: type(value).__name__,
)
def test_no_image_is_refused_at_the_call(value: Any) -> None:
    detector = Detector(RedBackend())
    for call in (detector, detector.stream):
        with pytest.raises(UserError, match="expected") as caught:
            call(value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected"):
        detector([value])


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros(()),
        np.array(["a.jpg"]),
        np.array([None]),
        np.zeros((0, 0, 3), np.uint8),
    ],
    ids=lambda value: f"{value.dtype} {value.shape}",
)
def test_arrays_of_another_kind_are_refused_at_the_call(value: np.ndarray) -> None:
    detector = Detector(RedBackend())
    for call in (lambda: detector(value), lambda: detector([value])):
        with pytest.raises(UserError, match=r"expected (uint8|at least 1×1)"):
            call()


def test_one_image_is_no_stream(path: Path) -> None:
    detector = Detector(RedBackend())
    for value in (str(path), path, path.read_bytes(), IMAGE, Image.fromarray(IMAGE)):
        with pytest.raises(UserError, match="a single image"):
            detector.stream(value)  # type: ignore[arg-type]


def test_files_that_cannot_be_read(path: Path) -> None:
    detector = Detector(RedBackend())
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match="open it with mode 'rb'"):
        detector(text)  # type: ignore[call-overload]
    closed = path.open("rb")
    closed.close()
    with pytest.raises(ImageError, match="cannot be read"):
        detector(closed)
    for data in (b"", bytearray(b"hello"), memoryview(np.zeros((2, 2))), io.BytesIO(path.read_bytes()[:50])):
        with pytest.raises(ImageError):
            detector(data)
    with Image.open(io.BytesIO(path.read_bytes()[:100])) as cut, pytest.raises(UserError, match="Pillow's"):
        detector(cut)
