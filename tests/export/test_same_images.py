"""Every command finds the same images in the same folder, in the same order, and says the same about the rest."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.quantization.calibrate import calibration_images, list_images
from export.quantization.scheme import Scheme
from export.verification.images import load_comparison_images
from runtime.benchmark.images import find_images as benchmark_images
from runtime.images.finder import find_images
from runtime.images.sources import find_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, each of its number's grey, in the order in which they are found; and what is left out."""
    photos = tmp_path / "photos"
    for number, name in enumerate(("UPPER.PNG", "a/b/one.png", "two.png")):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        data = cv2.imencode(".png", np.full((40, 40, 3), number, np.uint8))[1]
        (photos / name).write_bytes(data.tobytes())
    for name in ("._two.png", ".hidden/three.png", "labels.json"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    (photos / "a" / "link.png").symlink_to(photos / "two.png")
    (photos / "again").symlink_to(photos)
    return photos


def test_every_command_finds_the_same(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = find_images(folder)
    assert [path.name for path in expected.paths] == ["UPPER.PNG", "one.png", "two.png"]
    said: list[str] = []
    assert [source.path for source in find_sources([folder], say=said.append)] == list(expected.paths)
    measured = benchmark_images([folder], 100)  # runtime.benchmark and runtime.loadgen
    assert list(measured.sizes_hw) == list(expected.paths)
    assert measured.left_out == tuple(said)
    caplog.set_level(logging.INFO, "export")
    assert list_images(folder) == list(expected.paths)
    assert calibration_images(str(folder), None, 100, Scheme("int8", "cpu")) == list(expected.paths)
    caplog.clear()
    assert [int(image[0, 0, 0]) for image in load_comparison_images(str(folder))] == [0, 1, 2]  # to_onnx and verify
    assert caplog.messages == said == [f"{folder}: left out {line}" for line in expected.left_out]
    assert len(said) == 5
