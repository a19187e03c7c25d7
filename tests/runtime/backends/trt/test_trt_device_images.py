"""The TensorRT backend on images in its GPU's memory, on the stand-in: pixels, order of work, lifetimes, errors."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

from runtime.backends import BackendError
from runtime.backends.trt.backend import TrtBackend
from runtime.cuda import open_cuda
from runtime.cuda.cuda_python import CudaPython
from runtime.cuda.intake import Intake
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.device_array import DeviceImage

from ....support.device_frames import PROTOCOLS, DlpackFrame, Producer, Protocol, finish
from ....support.engines import MANIFEST, assert_same, feed, write_standin_engine
from ....support.fakes import red_image
from ....support.standin import network
from ....support.standin.driver import Order
from ....support.standin.install import Binding, StandIn, install
from ....support.standin.network import expected
from ....support.standin.parts import StandinError

# Enlarged, of the canvas's size, halved exactly, averaged first, averaged and then halved, and of one pixel.
SIZES = [(60, 80), (64, 64), (128, 160), (300, 290), (1024, 1024), (1, 1), (57, 111)]


def images_of_all_sizes(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    made = []
    for height, width in SIZES:
        image = random.integers(0, 180, (height, width, 3), dtype=np.uint8)
        image[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = (random.integers(230, 256), 0, 0)
        made.append(image)
    return made


def same(found: list[Detections], wanted: list[Detections]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for field in dataclasses.fields(Detections):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("order", ["late", "eager", "random"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_the_same_detections_as_from_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binding: Binding, protocol: Protocol, order: Order
) -> None:
    stand_in = install(monkeypatch, binding, order=order)
    producer = Producer(stand_in.driver)
    images = images_of_all_sizes()
    with Detector(write_standin_engine(tmp_path, stand_in), binding=binding) as detector:
        assert detector.detect([]) == []
        wanted = detector.detect(images)
        assert [len(each) for each in wanted] == [1] * len(images)
        for _ in range(2):  # the second time by a captured graph
            same(detector.detect([producer.frame(image, protocol) for image in images]), wanted)
            mixed = [producer.frame(image, protocol) if n % 2 else image for n, image in enumerate(images)]
            same(detector(mixed), wanted)
            del mixed
        same([detector(producer.frame(image, protocol)) for image in images], wanted)
        same(list(detector.stream(producer.frame(image, protocol) for image in images)), wanted)  # type: ignore[arg-type]
    finish(stand_in, producer)


def test_arrays_are_taken_in_the_thread_that_made_them(
    monkeypatch: pytest.MonkeyPatch, engine: Path, stand_in: StandIn, producer: Producer
) -> None:
    """torch's current stream is a thread's: only there does the producer know what to wait for."""
    taken: list[tuple[int, int]] = []  # the threads that made and took a frame
    real = DlpackFrame.__dlpack__

    def dlpack(self: Any, **options: Any) -> Any:
        taken.append((self.made_in, threading.get_ident()))
        return real(self, **options)

    def frame(image: np.ndarray) -> Any:
        made = producer.frame(image, "dlpack 1")
        made.made_in = threading.get_ident()
        return made

    monkeypatch.setattr(DlpackFrame, "__dlpack__", dlpack)
    images = images_of_all_sizes()
    with Detector(engine) as detector:
        wanted = detector.detect(images)
        same(detector([frame(image) for image in images]), wanted)
        same(list(detector.stream([frame(image) for image in images])), wanted)  # type: ignore[arg-type]
        same(detector.detect([frame(image) for image in images]), wanted)
        same(list(detector.stream(map(frame, images))), wanted)  # type: ignore[arg-type]
    assert len(taken) == 4 * len(images)
    assert [maker == taker for maker, taker in taken] == [True] * len(taken)
    finish(stand_in, producer)


def canvases_seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the network gets, batch by batch."""
    seen: list[np.ndarray] = []
    real = network.run

    def run(images: np.ndarray, image_sizes: np.ndarray) -> Any:
        seen.append(images.copy())
        return real(images, image_sizes)

    monkeypatch.setattr(network, "run", run)
    return seen


@pytest.mark.parametrize("divide_large", [True, False])
def test_the_network_gets_the_pixels_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_in: StandIn, producer: Producer, divide_large: bool
) -> None:
    """Of every layout: rows with a gap, channels in planes, and BGR turned round by a negative stride."""
    pre = dataclasses.replace(MANIFEST.preprocess, divide_large=divide_large)
    engine = write_standin_engine(tmp_path, stand_in, manifest=dataclasses.replace(MANIFEST, preprocess=pre))
    with TrtBackend(engine) as backend:
        detector, seen = Detector(backend), canvases_seen(monkeypatch)
        for image in images_of_all_sizes():
            planes = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
            padded = np.zeros((image.shape[0], image.shape[1] + 5, 3), np.uint8)[:, : image.shape[1]]
            padded[:] = image
            turned = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
            seen.clear()
            detector.detect([image])
            for layout in (image, planes, padded, turned):
                for protocol in PROTOCOLS:
                    detector.detect([producer.frame(layout, protocol)])
            assert len(seen) == 1 + 4 * len(PROTOCOLS)
            for canvas in seen[1:]:
                np.testing.assert_array_equal(canvas, seen[0])
    finish(stand_in, producer)


def test_frames_are_not_copied_to_the_host(engine: Path, stand_in: StandIn, producer: Producer) -> None:
    image = red_image()
    with Detector(engine) as detector:
        detector.detect([image])
        stand_in.driver.calls.clear()
        detector.detect([producer.frame(image, "dlpack")] * 3)
        calls = stand_in.driver.calls
        assert calls.count("cudaMemcpyAsync") == 1 + 5, "the sizes to the device, and the detections back"
        assert calls.count("cuLaunchKernel") == 3
        assert calls.count("cudaStreamSynchronize") == 0
        created = calls.count("cudaEventCreateWithFlags")
        for _ in range(20):
            detector.detect([producer.frame(image, "interface 3")])
        assert calls.count("cudaEventCreateWithFlags") <= max(created, 3), "events are used again"
        assert calls.count("cuModuleLoadData") == 1
    finish(stand_in, producer)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_that_lies_on_the_device_goes_into_the_backend_as_it_is(
    engine: Path, stand_in: StandIn, producer: Producer, protocol: Protocol
) -> None:
    images, sizes = feed(4, 64, 96)
    with TrtBackend(engine) as backend:
        assert_same(backend.infer(producer.frame(images, protocol), sizes), expected(images, sizes))
        with pytest.raises(BackendError, match=r"canvas width 100, but|canvas 100×64, expected sides"):
            backend.infer(producer.frame(np.zeros((1, 64, 100, 3), np.uint8), protocol), sizes[:1])
        detector = Detector(backend)
        same(detector(producer.frame(images, protocol)), detector(images))  # type: ignore[arg-type]
        same(detector(producer.frame(images[:1], protocol)), detector(images[:1]))  # type: ignore[arg-type]
    finish(stand_in, producer)


def test_several_threads_and_a_batch_below_the_graphs_minimum(
    tmp_path: Path, stand_in: StandIn, producer: Producer
) -> None:
    inputs = dataclasses.replace(MANIFEST.inputs, batch_min=2)
    engine = write_standin_engine(tmp_path, stand_in, manifest=dataclasses.replace(MANIFEST, inputs=inputs))
    images = [picture for seed in range(4) for picture in images_of_all_sizes(seed)[:4]]
    with Detector(engine) as detector:
        wanted = detector.detect(images)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda image: detector(producer.frame(image, "dlpack")), images))
        same(found, wanted)
    finish(stand_in, producer)


@pytest.mark.parametrize("order", ["late", "eager", "random"])
@pytest.mark.parametrize(
    ("protocol", "defect", "caught"),
    [
        ("dlpack", "no wait for the image", "race: a kernel doesn't wait for a decode"),
        ("interface 3", "no wait for the image", "race: a kernel doesn't wait for a decode"),
        ("interface 3", "no wait for the producer", "race: a kernel doesn't wait for a decode"),
        ("interface 2", "no wait for the producer", "race: a kernel doesn't wait for a decode"),
        ("dlpack", "the frame is let go", "freed"),
        ("interface 3", "the frame is let go", "freed"),
        ("interface 3", "the kernel runs on another stream", "race: the network doesn't wait for a kernel"),
    ],
)
def test_a_planted_defect_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: Order, protocol: Protocol, defect: str, caught: str
) -> None:
    stand_in = install(monkeypatch, order=order)
    producer = Producer(stand_in.driver)
    engine = write_standin_engine(tmp_path, stand_in)
    with pytest.raises(StandinError):  # noqa: PT012
        with Detector(engine) as detector:
            plant(monkeypatch, defect)
            for _ in detector.stream(producer.frame(red_image(), protocol) for _ in range(3)):
                pass
        finish(stand_in, producer)
    assert re.search(caught, "; ".join(stand_in.driver.violations))


def plant(monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    if defect == "no wait for the producer":
        monkeypatch.setattr(CudaPython, "follow", lambda self, stream, producer, event: None)
    elif defect == "no wait for the image":
        real = Intake.fill
        waits: Callable[..., None] = CudaPython.wait

        def fill(self: Intake, *arguments: Any) -> None:
            monkeypatch.setattr(CudaPython, "wait", lambda self, stream, event: None)
            try:
                real(self, *arguments)
            finally:
                monkeypatch.setattr(CudaPython, "wait", waits)

        monkeypatch.setattr(Intake, "fill", fill)
    elif defect == "the frame is let go":
        take = Intake.take

        def forgetful(self: Intake, value: Any) -> list[DeviceImage]:
            return [dataclasses.replace(image, owner=None) for image in take(self, value)]

        monkeypatch.setattr(Intake, "take", forgetful)
    else:
        real_fill = Intake.fill
        other = open_cuda(0)

        def elsewhere(self: Intake, *arguments: Any) -> None:
            real_fill(self, *arguments[:-1], other.create_stream())

        monkeypatch.setattr(Intake, "fill", elsewhere)


def test_an_image_that_is_said_to_be_ready_is_not_waited_for(
    engine: Path, stand_in: StandIn, producer: Producer
) -> None:
    with Detector(engine) as detector, pytest.raises(StandinError, match="race: a kernel doesn't wait for a decode"):
        detector(producer.frame(red_image(), "interface 3", stream=None))
    stand_in.driver.violations.clear()


@pytest.mark.parametrize(
    ("pixels", "broken", "message"),
    [
        (
            np.zeros((3, 20, 30), np.float32),
            {},
            r"image 1 is float32 \[3, 20, 30\], expected uint8 .* permute\(1, 2, 0\)",
        ),
        (np.zeros((20, 30, 3), np.float32), {}, r"expected uint8 .*; scale its values to 0–255 and convert"),
        (np.zeros((20, 30), np.uint8), {}, r"image 1 is uint8 \[20, 30\], expected uint8 \[height, width, 3\]"),
        (np.zeros((2, 20, 30, 3), np.uint8), {}, "image 1 is a batch of 2; give its images one by one"),
        (np.zeros((20, 30, 3), np.uint8), {"device": (2, 1)}, "image 1 is on GPU 1, but the model runs on GPU 0; copy"),
        (
            np.zeros((20, 30, 3), np.uint8),
            {"device": (8, 0)},
            "image 1 is a DlpackFrame on a device of DLPack's type 8",
        ),
        (
            np.zeros((20, 30, 3), np.uint8),
            {"memory": (1, 0)},
            "image 1 is a DlpackFrame whose memory is on a device of DLPack's type 1, expected an NVIDIA GPU",
        ),
        (
            np.zeros((20, 30, 3), np.uint8),
            {"raises": "use tensor.detach()"},
            "image 1 is a DlpackFrame that its library does not hand over: use tensor.detach",
        ),
    ],
)
def test_images_that_cannot_be_taken(
    engine: Path, stand_in: StandIn, producer: Producer, pixels: np.ndarray, broken: dict[str, Any], message: str
) -> None:
    with Detector(engine) as detector:
        with pytest.raises(UserError, match=message) as caught:
            detector.detect([red_image(), producer.frame(pixels, "dlpack", **broken)])
        source = iter([red_image(), producer.frame(pixels, "dlpack", **broken), red_image()])
        first, second, third = detector(source)  # type: ignore[misc]
        assert isinstance(second, UserError)
        assert len(first) == len(third) == 1
        del caught, source, first, second, third
    finish(stand_in, producer)


def test_an_interface_of_another_gpu_or_with_a_mask(engine: Path, stand_in: StandIn, producer: Producer) -> None:
    other = Producer(stand_in.driver, device=1)
    image = red_image()
    with Detector(engine) as detector:
        for frame, message in (
            (other.frame(image, "interface 3"), "image 0 is on GPU 1, but the model runs on GPU 0"),
            (producer.frame(image, "interface 3", mask=image), "image 0 is an array with a mask"),
        ):
            with pytest.raises(UserError, match=message):
                detector(frame)
        assert len(detector(producer.frame(image, "interface 3", strides=None))) == 1
    del frame
    finish(stand_in, producer, other)


def test_an_image_may_outlive_its_detector(engine: Path, stand_in: StandIn, producer: Producer) -> None:
    detector = Detector(engine)
    taken = detector.receive(producer.frame(red_image(), "dlpack"))
    assert isinstance(taken, DeviceImage)
    detector.close()
    with pytest.raises(BackendError, match="was closed"):
        detector.receive(producer.frame(red_image(), "dlpack"))
    del taken
    finish(stand_in, producer)
