"""Images that a detector on a GPU took: whose they are, and what happens while it closes. On the stand-in."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError
from runtime.backends.trt.backend import TrtBackend
from runtime.cuda import CudaError, open_cuda
from runtime.cuda.intake import Intake
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.device_array import DeviceImage, dims_of

from ....support.device_frames import BareFrame, DlpackFrame, Producer, finish
from ....support.engines import feed
from ....support.fakes import RedBackend, red_image
from ....support.standin.install import StandIn


def test_an_image_belongs_to_the_detector_that_took_it(engine: Path, stand_in: StandIn, producer: Producer) -> None:
    with Detector(engine) as detector, Detector(engine) as other, Detector(RedBackend()) as on_cpu:
        taken = detector.receive(producer.frame(red_image(), "dlpack"))
        prepared = detector.prepare(taken)
        assert isinstance(taken, DeviceImage)
        wanted = detector(red_image())
        for stranger in (other, on_cpu):
            message = "image 1 was taken by another detector; pass the array itself"
            with pytest.raises(UserError, match=message):
                stranger.detect([red_image(), taken])
            assert message in str(list(stranger.stream([red_image(), taken]))[1])
            with pytest.raises(UserError, match=message):
                stranger.detect_prepared([stranger.prepare(red_image()), prepared])
        with pytest.raises(UserError, match="taken by another detector"):
            other.backend.infer(prepared.images, prepared.image_sizes)  # type: ignore[arg-type]
        np.testing.assert_array_equal(detector.detect([taken])[0].boxes, wanted.boxes)
        np.testing.assert_array_equal(detector.detect_prepared([prepared])[0].boxes, wanted.boxes)
    del taken, prepared
    finish(stand_in, producer)


def test_closing_waits_for_an_image_that_is_being_taken(
    monkeypatch: pytest.MonkeyPatch, engine: Path, stand_in: StandIn, producer: Producer
) -> None:
    inside, goes_on = threading.Event(), threading.Event()
    real = DlpackFrame.__dlpack__

    def slow(self: Any, **options: Any) -> Any:
        inside.set()
        assert goes_on.wait(20)
        return real(self, **options)

    monkeypatch.setattr(DlpackFrame, "__dlpack__", slow)
    images, sizes = feed(2, 64, 96)
    for as_batch in (False, True):
        backend = TrtBackend(engine)
        found: list[Any] = []

        def work(backend: TrtBackend = backend, found: list[Any] = found, as_batch: bool = as_batch) -> None:
            if as_batch:
                found.append(backend.infer(producer.frame(images, "dlpack"), sizes))
            else:
                found.append(backend.intake().take(producer.frame(images, "dlpack")))

        inside.clear()
        goes_on.clear()
        working, closing = threading.Thread(target=work), threading.Thread(target=backend.close)
        working.start()
        assert inside.wait(20)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        goes_on.set()
        for thread in (working, closing):
            thread.join(20)
        assert len(found) == 1
        found.clear()
    finish(stand_in, producer)


def test_a_closed_intake_says_so(stand_in: StandIn, producer: Producer) -> None:
    cuda = open_cuda(0)
    intake = Intake(cuda)
    (image,) = intake.take(producer.frame(red_image(), "dlpack"))
    intake.close()
    intake.close()
    with pytest.raises(CudaError, match="was closed"):
        intake.take(producer.frame(red_image(), "dlpack"))
    with pytest.raises(CudaError, match="was closed"):
        intake.to_host(image)
    del image
    cuda.close()
    finish(stand_in, producer)


def test_a_closed_detector_copies_nothing(stand_in: StandIn, producer: Producer) -> None:
    detector = Detector(RedBackend())
    assert isinstance(detector.receive(producer.frame(red_image(), "dlpack")), np.ndarray)
    detector.close()
    with pytest.raises(BackendError, match="was closed"):
        detector.receive(producer.frame(red_image(), "dlpack"))
    finish(stand_in, producer)


def test_what_infer_cannot_take(engine: Path, stand_in: StandIn, producer: Producer) -> None:
    images, sizes = feed(2, 64, 96)
    with TrtBackend(engine) as backend:
        with pytest.raises(UserError, match=r"a DlpackFrame that lies on the host, expected .*; give it as NumPy's"):
            backend.infer(producer.frame(images, "dlpack", device=(1, 0)), sizes)
        with pytest.raises(UserError, match="an empty batch in a GPU's memory, expected at least one image"):
            backend.infer(producer.frame(images[:0], "dlpack"), sizes[:0])
    finish(stand_in, producer)


def test_an_array_that_has_no_shape(engine: Path, stand_in: StandIn, producer: Producer) -> None:
    image = red_image()
    with Detector(engine) as detector:
        for pixels in (image, image[None]):
            frame = BareFrame(producer.frame(pixels, "dlpack"))
            assert dims_of(frame) == pixels.ndim
            (found, wanted) = [
                each if isinstance(each, list) else [each] for each in (detector(frame), detector(pixels))
            ]
            assert len(found) == 1
            np.testing.assert_array_equal(found[0].boxes, wanted[0].boxes)
        with pytest.raises(UserError, match="a BareFrame that its library does not hand over: no memory"):
            detector(BareFrame(producer.frame(image, "dlpack", raises="no memory")))
        del frame
    finish(stand_in, producer)
