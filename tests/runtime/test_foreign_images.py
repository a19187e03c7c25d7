"""Images of other array libraries, on the host and on a GPU, with backends that run on the CPU and in CUDA."""

from __future__ import annotations

import dataclasses
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.backends.ort import libraries as ort_libraries
from runtime.backends.ort.backend import OrtBackend
from runtime.cuda import CudaError
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.device_array import gpu_of, is_foreign_array
from runtime.manifest import InputShapes
from runtime.tta import MultiScaleDetector

from ..support.fakes import RedBackend, manifest_with, red_image, write_red_onnx

SIZES = [(60, 80), (64, 64), (128, 160), (300, 290), (57, 111)]
IMAGES = [red_image(height, width, (8, 12, width - 8, height - 4)) for height, width in SIZES]


class Foreign:
    """An array on the host of a library that speaks DLPack alone, before its version 1."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape = pixels, pixels.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.pixels.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        return self.pixels.__dlpack__()


class Picture:
    """As PIL's images are: with an array interface of NumPy alone."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.__array_interface__ = pixels.__array_interface__
        self.pixels = pixels  # and no shape


def same(found: list[Detections], wanted: list[Detections]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for field in dataclasses.fields(Detections):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("kind", [Foreign, Picture])
def test_arrays_on_the_host(kind: Any) -> None:
    detector = Detector(RedBackend())
    wanted = detector(IMAGES)
    same(detector.detect([kind(image) for image in IMAGES]), wanted)
    same([detector(kind(image)) for image in IMAGES], wanted)
    same(list(detector.stream(map(kind, IMAGES))), wanted)  # type: ignore[arg-type]
    same(detector(kind(np.stack(IMAGES[:1] * 3))), wanted[:1] * 3)  # type: ignore[arg-type]
    same(
        MultiScaleDetector(detector, [64, 96]).detect([kind(IMAGES[0])]),
        MultiScaleDetector(detector, [64, 96]).detect(IMAGES[:1]),
    )


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="the tensors")
    detector = Detector(RedBackend())
    wanted = detector(IMAGES)
    tensors = [torch.from_numpy(image) for image in IMAGES]
    same(detector.detect(tensors), wanted)
    same([detector(tensors[0].permute(2, 0, 1).contiguous().permute(1, 2, 0))], wanted[:1])
    for tensor, message in (
        (torch.zeros(3, 20, 30), r"image 0 is float32 \[3, 20, 30\], .* permute\(1, 2, 0\), .*; scale its values to"),
        (torch.zeros(4, 20, 30, dtype=torch.uint8), r"image 0 is uint8 \[4, 20, 30\], expected uint8"),
        (torch.zeros(20, 30, 3, requires_grad=True), "image 0 is a Tensor that its library does not hand over: "),
        (
            torch.zeros(20, 30, 3, dtype=torch.uint8, device="meta"),
            "image 0 is a Tensor that its library does not|on a",
        ),
    ):
        with pytest.raises(UserError, match=message):
            detector(tensor)


@pytest.mark.parametrize("kind", [np.ascontiguousarray, Foreign])
def test_planes_are_images_too(kind: Any) -> None:
    detector = Detector(RedBackend())
    wanted = detector(IMAGES)
    planes = [kind(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in IMAGES]  # torchvision's order
    same(detector(planes), wanted)
    same([detector(one) for one in planes], wanted)
    same(list(detector.stream(iter(planes))), wanted)  # type: ignore[arg-type]
    same(detector(kind(np.stack([IMAGES[0].transpose(2, 0, 1)] * 2))), wanted[:1] * 2)
    narrow = red_image(40, 3, (0, 4, 3, 30))
    same([detector(kind(narrow))], [detector(narrow)])


def test_what_is_no_foreign_array() -> None:
    for value in ("photo.jpg", Path("photo.jpg"), [1], np.zeros(3), None, 3, object()):
        assert not is_foreign_array(value)
    assert gpu_of(Foreign(IMAGES[0])) is None
    with pytest.raises(UserError, match=r"image 0 is list, expected uint8 \[height, width, 3\]"):
        Detector(RedBackend()).detect([[1]])  # type: ignore[list-item]


def test_an_error_takes_its_images_place_in_a_stream() -> None:
    detector = Detector(RedBackend())
    found = list(detector.stream([IMAGES[0], Foreign(np.zeros((4, 9, 9), np.uint8)), IMAGES[1]]))  # type: ignore[list-item]
    assert [type(one) for one in found] == [Detections, UserError, Detections]
    assert "image 1 is uint8 [4, 9, 9]" in str(found[1])


def test_frames_of_a_gpu_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    for name in ("cuda.bindings.runtime", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    pytest.importorskip("cuda.bindings", reason="what is patched")
    import cuda.bindings

    monkeypatch.delattr(cuda.bindings, "runtime", raising=False)
    with pytest.raises(CudaError, match="cuda-python cannot be imported"):
        Detector(RedBackend()).detect([Frame(IMAGES[0])])


class TestOnAGpu:
    """Frames in the memory of the stand-in's GPU."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")

    @pytest.mark.parametrize("order", ["late", "eager", "random"])
    @pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
    def test_a_backend_on_the_cpu_gets_copies(self, monkeypatch: pytest.MonkeyPatch, binding: Any, order: Any) -> None:
        from ..support.device_frames import PROTOCOLS, Producer
        from ..support.standin.install import install

        stand_in = install(monkeypatch, binding, order=order)
        if binding == "pycuda":
            monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
            import cuda.bindings

            monkeypatch.delattr(cuda.bindings, "runtime")
        with Detector(RedBackend()) as detector:
            wanted = detector(IMAGES)
            # pycuda cannot tell on which GPU memory lies, and takes the first.
            producers = [Producer(stand_in.driver, device) for device in ((0, 1) if binding == "cuda-python" else (0,))]
            for producer in producers:
                for protocol in PROTOCOLS:
                    frames = [producer.frame(image, protocol) for image in IMAGES]
                    same(detector.detect(frames), wanted)
                    planes = np.ascontiguousarray(IMAGES[0].transpose(2, 0, 1)).transpose(1, 2, 0)
                    turned = np.ascontiguousarray(IMAGES[0][..., ::-1])[..., ::-1]
                    for image in (planes, turned, planes.transpose(2, 0, 1)):
                        same([detector(producer.frame(image, protocol))], wanted[:1])
                    del frames
        gc.collect()
        for producer in producers:
            producer.close()
        stand_in.check_end()

    def test_a_copy_that_does_not_wait_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from runtime.cuda.cuda_python import CudaPython

        from ..support.device_frames import Producer
        from ..support.standin.install import install
        from ..support.standin.parts import StandinError

        stand_in = install(monkeypatch)
        producer = Producer(stand_in.driver)
        monkeypatch.setattr(CudaPython, "wait", lambda self, stream, event: None)
        with pytest.raises(StandinError, match=r"race: copy of .* bytes to the host doesn't wait for a decode"):
            Detector(RedBackend()).detect([producer.frame(IMAGES[0], "dlpack")])

    def test_an_image_without_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ..support.device_frames import PROTOCOLS, Producer
        from ..support.standin.install import install

        stand_in = install(monkeypatch)
        producer = Producer(stand_in.driver)
        with Detector(RedBackend()) as detector:
            for protocol in PROTOCOLS:
                with pytest.raises(UserError, match="an image of 30×0 pixels has no content"):
                    detector(producer.frame(np.zeros((0, 30, 3), np.uint8), protocol))
        gc.collect()
        producer.close()
        stand_in.check_end()

    def test_onnx_runtime_on_cuda_takes_them_as_they_are(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        pytest.importorskip("onnx", reason="builds the test's graph")
        pytest.importorskip("onnxruntime", reason="the backend under test")
        from ..support.device_frames import PROTOCOLS, Producer
        from ..support.ort_fake import FakeOrt
        from ..support.standin.install import install

        model = write_red_onnx(tmp_path / "red.onnx", manifest_with(inputs=InputShapes(1, 16, 64, 512, 64, 512)))
        with Detector(OrtBackend(model)) as plain:
            wanted = plain(IMAGES)
            with pytest.raises(BackendError, match="images is a Picture, and this session takes none from a GPU"):
                plain.backend.infer(Picture(IMAGES[0][None]), np.array([[64, 64]], np.int32))  # type: ignore[arg-type]
        stand_in = install(monkeypatch)
        driver, producer, fake = stand_in.driver, Producer(stand_in.driver), FakeOrt()
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
        monkeypatch.setattr(ort_libraries, "is_loadable", lambda name: True)
        taken: list[int] = []

        def memory(size: int) -> tuple[int, np.ndarray]:
            allocation = driver.allocate(size, "device")
            assert allocation is not None
            taken.append(allocation.address)
            return allocation.address, allocation.data

        with Detector(model, backend="cuda") as detector:
            fake.memory = memory  # before the first call: the slots keep their memory for calls of the same shape
            same(detector(IMAGES), wanted)
            for protocol in PROTOCOLS:
                same(detector.detect([producer.frame(image, protocol) for image in IMAGES]), wanted)
                mixed = [producer.frame(image, protocol) if n % 2 else image for n, image in enumerate(IMAGES * 2)]
                same(detector(mixed), wanted * 2)
                del mixed
            (canvas,) = [detector.prepare(IMAGES[1])]
            backend: Any = detector.backend
            found = backend.infer(producer.frame(canvas.images, "dlpack"), canvas.image_sizes)
            np.testing.assert_array_equal(
                found.detection_boxes, backend.infer(canvas.images, canvas.image_sizes).detection_boxes
            )
            # A batch that memory does not hold runs in pieces.
            caplog.set_level("ERROR", "runtime.detector")  # a kept warning keeps its error, and that the frames
            fake.most_images = 1
            same(detector.detect([producer.frame(IMAGES[0], "dlpack")] * 3), wanted[:1] * 3)
        for address in taken:
            driver.free(address, "device")
        gc.collect()
        producer.close()
        stand_in.check_end()
