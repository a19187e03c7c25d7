from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BackendError, BatchTooLarge
from runtime.backends.failures import inference_error
from runtime.detections import Detections, RawOutputs
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.manifest import InputShapes
from runtime.stopwatch import Stopwatch

from ..support.fakes import MANIFEST, RedBackend, manifest_with, red_image, write_red_onnx

SHAPES = [(60, 80), (80, 60), (64, 64), (200, 250), (30, 40), (7, 200)]
BOXES = [(10, 20, 50, 40), (5, 5, 55, 70), (0, 0, 64, 64), (40, 50, 240, 190), (8, 4, 30, 20), (20, 1, 150, 6)]
IMAGES = [red_image(*size, box) for size, box in zip(SHAPES, BOXES, strict=True)]


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Detections))


def test_no_images() -> None:
    backend = RedBackend()
    assert Detector(backend).detect([]) == []
    assert backend.batches == []


def test_boxes_come_back_in_each_images_own_pixels() -> None:
    found = Detector(RedBackend())(IMAGES)
    for detections, (height, width), box in zip(found, SHAPES, BOXES, strict=True):
        assert detections.scores.tolist() == pytest.approx([0.9, 0.4])  # the duplicate went, the other class stayed
        assert detections.classes.tolist() == [0, 1]
        # One canvas pixel, in pixels of the image: the edge is blurred by resizing.
        tolerance = 1.01 * max(1, height / 64, width / 85)
        np.testing.assert_allclose(detections.boxes[0], box, atol=tolerance)
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= [width, height, width, height]).all()


def test_an_image_without_anything() -> None:
    (found,) = Detector(RedBackend()).detect([red_image(box=None)])
    assert found.boxes.shape == (0, 4)


def test_an_image_has_the_same_detections_whatever_its_neighbours() -> None:
    detector = Detector(RedBackend())
    together = detector.detect(IMAGES)
    assert all(same(detector.detect([image])[0], found) for image, found in zip(IMAGES, together, strict=True))


def test_images_of_a_canvas_share_a_batch() -> None:
    backend = RedBackend()
    Detector(backend).detect([IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[4]])
    assert sorted(shape[:3] for shape in backend.batches) == [(1, 96, 64), (3, 64, 96)]


def test_batches_keep_to_the_graphs_range() -> None:
    backend = RedBackend(manifest_with(inputs=InputShapes(2, 2, 32, 512, 32, 512)))
    found = Detector(backend).detect([IMAGES[0]] * 5)
    assert [shape[0] for shape in backend.batches] == [2, 2, 2]  # the last one filled up with a blank
    assert len(found) == 5
    assert all(same(one, found[0]) for one in found)


def test_a_fixed_canvas() -> None:
    backend = RedBackend(manifest_with(inputs=InputShapes(1, 4, 128, 128, 128, 128)))
    found = Detector(backend).detect(IMAGES)
    assert {shape[1:3] for shape in backend.batches} == {(128, 128)}
    assert len(found) == len(IMAGES)
    small = Detector(RedBackend(manifest_with(inputs=InputShapes(1, 4, 64, 64, 64, 64))))
    with pytest.raises(BackendError, match=r"an image of 80×60 needs a canvas of 96×64 .* exported for at most 64×64"):
        small.detect(IMAGES[:1])


def test_images_of_another_type() -> None:
    with pytest.raises(UserError, match=r"image 1 is float32 \[5, 5, 3\], expected uint8"):
        Detector(RedBackend()).detect([IMAGES[0], np.zeros((5, 5, 3), np.float32)])


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
        found = detector.detect(IMAGES)
    for detections, reference in zip(found, Detector(RedBackend()).detect(IMAGES), strict=True):
        np.testing.assert_array_equal(detections.boxes, reference.boxes[:1])
        assert detections.scores.tolist() == pytest.approx([0.9])


class SmallBackend(RedBackend):
    """Its memory holds `most` images of a canvas at a time; `error` is what its library says of more."""

    def __init__(self, most: int, error: Exception, batch_min: int = 1) -> None:
        super().__init__(manifest_with(inputs=dataclasses.replace(MANIFEST.inputs, batch_min=batch_min)))
        self.most, self.error = most, error

    def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
        def run(images: np.ndarray, image_sizes: np.ndarray) -> RawOutputs:
            if len(images) > self.most:
                raise self.error
            return super(SmallBackend, self).infer(images, image_sizes, **options)

        try:
            return run(images, image_sizes)
        except type(self.error) as error:
            least = self.manifest.inputs.batch_min
            raise inference_error(Path("m.onnx"), "ONNX Runtime", error, run, images, image_sizes, least) from error


OUT_OF_MEMORY = RuntimeError("bfc_arena.cc: Available memory of 1000 is smaller than requested bytes of 2000")


def test_where_memory_runs_out_smaller_batches_go_on(caplog: pytest.LogCaptureFixture) -> None:
    images = [red_image(60, 80, (10, 20, 50 - n, 40)) for n in range(13)]
    wanted = Detector(RedBackend()).detect(images)
    backend = SmallBackend(3, OUT_OF_MEMORY)
    detector = Detector(backend)
    for found in (detector.detect(images), list(detector.stream(images)), list(detector.stream(images, batch=2))):
        assert all(same(one, other) for one, other in zip(found, wanted, strict=True))  # type: ignore[arg-type]
    (line,) = caplog.messages
    assert "a batch of 3 fits: use --batch 3" in line
    assert line.endswith("continuing with batches of at most 3 on this canvas")
    assert "\n" not in line
    # What named the batch, then 13 images in 3, 3, 3, 3, 1; twice 8 of the stream's batches, then those of 2.
    assert {shape[0] for shape in backend.batches[1:]} == {3, 2, 1}
    detector.detect([red_image(200, 60)] * 2)  # another canvas may hold more
    assert backend.batches[-1][0] == 2


def test_where_memory_runs_out_again_batches_shrink_again(caplog: pytest.LogCaptureFixture) -> None:
    backend = SmallBackend(4, OUT_OF_MEMORY)
    detector = Detector(backend)
    wanted = Detector(RedBackend()).detect([IMAGES[0]] * 8)
    assert all(map(same, detector.detect([IMAGES[0]] * 8), wanted))
    backend.most = 1  # something else took the rest
    assert all(map(same, detector.detect([IMAGES[0]] * 8), wanted))
    assert [line.rpartition("; ")[2] for line in caplog.messages] == [
        f"continuing with batches of at most {count} on this canvas" for count in (4, 1)
    ]


def test_what_memory_did_not_hold_is_no_part_of_the_networks_time() -> None:
    """Each call takes a second by the backend's account; those of an attempt that failed on its way are left out."""

    class Counting(SmallBackend):
        shrinks_after = 10**6  # batches

        def infer(self, *arguments: Any, stopwatch: Stopwatch | None = None, **options: Any) -> RawOutputs:
            raw = super().infer(*arguments, **options)
            if stopwatch is not None:
                stopwatch.add("infer", 1)
            if len(self.batches) == self.shrinks_after:
                self.most = 1
            return raw

    backend = Counting(2, OUT_OF_MEMORY)
    detector = Detector(backend)
    detector.detect([IMAGES[0]] * 4)  # from here on batches of 2
    before = len(backend.batches)
    backend.shrinks_after = before + 2
    stopwatch = Stopwatch()
    detector.detect_prepared([detector.prepare(IMAGES[0])] * 8, stopwatch)
    assert len(backend.batches) > before + 8
    assert stopwatch.seconds["infer"] == 8


def test_where_no_batch_fits_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    for most, least in ((0, 1), (1, 2)):
        backend = SmallBackend(most, OUT_OF_MEMORY, batch_min=least)
        with pytest.raises(BatchTooLarge, match="no batch of this canvas fits") as caught:
            Detector(backend).detect([IMAGES[0]] * 4)
        assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=r"failed on images \[4, 64, 96, 3\]: another reason$"):
        Detector(SmallBackend(2, RuntimeError("another reason"))).detect([IMAGES[0]] * 4)
    assert caplog.messages == []


def test_pieces_below_the_graphs_least_batch_are_filled_up() -> None:
    backend = SmallBackend(2, OUT_OF_MEMORY, batch_min=2)
    images = [red_image(60, 80, (10, 20, 50 - n, 40)) for n in range(5)]
    wanted = Detector(RedBackend()).detect(images)
    assert all(map(same, Detector(backend).detect(images), wanted))
    assert {shape[0] for shape in backend.batches} == {2}


@pytest.mark.parametrize(
    ("name", "value"), [("candidate_scores", np.nan), ("candidate_scores", np.inf), ("candidate_boxes", np.inf)]
)
def test_numbers_that_are_not_finite_are_an_error(name: str, value: float) -> None:
    """Weights beyond float's range give them; they would be detections without sense."""

    class Damaged(RedBackend):
        def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
            raw = super().infer(images, image_sizes, **options)
            array = getattr(raw, name).copy()
            array[:, 0] = value
            return dataclasses.replace(raw, **{name: array, "nms_exact": raw.nms_exact})

    with Detector(Damaged()) as detector, pytest.raises(UserError, match="not finite numbers"):
        detector.detect([red_image()])


def test_a_class_beyond_the_manifests_is_an_error() -> None:
    class Foreign(RedBackend):
        def infer(self, images: np.ndarray, image_sizes: np.ndarray, **options: Any) -> RawOutputs:
            raw = super().infer(images, image_sizes, **options)
            return dataclasses.replace(raw, detection_classes=raw.detection_classes + 2)

    with Detector(Foreign()) as detector, pytest.raises(UserError, match="found class 2, counted from 0"):
        detector.detect([red_image()])
