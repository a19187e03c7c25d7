from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.manifest import InputShapes

from .fakes import RedBackend, manifest_with, picture, write_red_onnx

SHAPES = [(60, 80), (80, 60), (64, 64), (200, 250), (30, 40), (7, 200)]
BOXES = [(10, 20, 50, 40), (5, 5, 55, 70), (0, 0, 64, 64), (40, 50, 240, 190), (8, 4, 30, 20), (20, 1, 150, 6)]
PICTURES = [picture(*size, box) for size, box in zip(SHAPES, BOXES, strict=True)]


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Detections))


def test_no_pictures() -> None:
    backend = RedBackend()
    assert Detector(backend).detect([]) == []
    assert backend.batches == []


def test_boxes_come_back_in_each_pictures_own_pixels() -> None:
    found = Detector(RedBackend())(PICTURES)
    for detections, (height, width), box in zip(found, SHAPES, BOXES, strict=True):
        assert detections.scores.tolist() == pytest.approx([0.9, 0.4])  # the duplicate went, the other class stayed
        assert detections.classes.tolist() == [0, 1]
        # One canvas pixel, in pixels of the picture: the edge is blurred by resizing.
        tolerance = 1.01 * max(1, height / 64, width / 85)
        np.testing.assert_allclose(detections.boxes[0], box, atol=tolerance)
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= [width, height, width, height]).all()


def test_a_picture_without_anything() -> None:
    (found,) = Detector(RedBackend()).detect([picture(box=None)])
    assert found.boxes.shape == (0, 4)


def test_a_picture_has_the_same_detections_whatever_its_neighbours() -> None:
    detector = Detector(RedBackend())
    together = detector.detect(PICTURES)
    assert all(same(detector.detect([image])[0], found) for image, found in zip(PICTURES, together, strict=True))


def test_pictures_of_a_canvas_share_a_batch() -> None:
    backend = RedBackend()
    Detector(backend).detect([PICTURES[0], PICTURES[1], PICTURES[0], PICTURES[4]])
    assert sorted(shape[:3] for shape in backend.batches) == [(1, 96, 64), (3, 64, 96)]


def test_batches_keep_to_the_graphs_range() -> None:
    backend = RedBackend(manifest_with(inputs=InputShapes(2, 2, 32, 512, 32, 512)))
    found = Detector(backend).detect([PICTURES[0]] * 5)
    assert [shape[0] for shape in backend.batches] == [2, 2, 2]  # the last one filled up with a blank
    assert len(found) == 5
    assert all(same(one, found[0]) for one in found)


def test_a_fixed_canvas() -> None:
    backend = RedBackend(manifest_with(inputs=InputShapes(1, 4, 128, 128, 128, 128)))
    found = Detector(backend).detect(PICTURES)
    assert {shape[1:3] for shape in backend.batches} == {(128, 128)}
    assert len(found) == len(PICTURES)
    small = Detector(RedBackend(manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64))))
    with pytest.raises(BackendError, match=r"a picture of 80×60 needs a canvas of 96×64 .* exported for at most 64×64"):
        small.detect(PICTURES[:1])


def test_pictures_of_another_type() -> None:
    with pytest.raises(UserError, match=r"picture 1 is float32 \[5, 5, 3\], expected uint8"):
        Detector(RedBackend()).detect([PICTURES[0], np.zeros((5, 5, 3), np.float32)])


def test_a_context_manager_closes_the_backend() -> None:
    backend = RedBackend()
    with Detector(backend) as detector:
        assert detector.classes == ("red", "other")
    assert backend.is_closed


def test_the_same_from_an_onnx_file(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="builds the test's graph")
    pytest.importorskip("onnxruntime", reason="runs it")
    path = write_red_onnx(tmp_path / "red.onnx")
    with Detector(path, threads=1) as detector:
        found = detector.detect(PICTURES)
    for detections, reference in zip(found, Detector(RedBackend()).detect(PICTURES), strict=True):
        np.testing.assert_array_equal(detections.boxes, reference.boxes[:1])
        assert detections.scores.tolist() == pytest.approx([0.9])
