"""Images in the memory of a real GPU: the kernel's pixels through each binding, and torch's tensors in a detector."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends import BackendError
from runtime.cuda import Binding, CudaError, open_cuda
from runtime.cuda.intake import Intake
from runtime.detector import Detector
from runtime.images.preprocess import make_batch, place_batch
from runtime.manifest import InputShapes, Preprocess

from ...support.fakes import manifest_with, red_image, write_red_onnx

pytestmark = pytest.mark.gpu

SIZES = [(60, 80), (64, 64), (128, 160), (300, 290), (1024, 1024), (1, 1), (57, 111)]


class Frame:
    """Device memory with the CUDA array interface."""

    def __init__(self, address: int, pixels: np.ndarray, stream: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": pixels.shape,
            "typestr": "|u1",
            "data": (address, True),
            "strides": pixels.strides,
            "version": 3,
            "stream": stream,
        }


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
@pytest.mark.parametrize("divide_large", [True, False])
def test_canvases_have_opencvs_pixels(binding: Binding, divide_large: bool) -> None:
    if importlib.util.find_spec("cuda" if binding == "cuda-python" else "pycuda") is None:
        pytest.skip(f"{binding} is not installed")
    try:
        cuda = open_cuda(0, binding)
    except CudaError as error:
        pytest.skip(str(error))
    pre = Preprocess(short_side=64, long_side=128, divide_large=divide_large)
    random = np.random.default_rng(0)
    intake = Intake(cuda)
    with cuda.current():
        stream = cuda.create_stream()
        for height, width in SIZES:
            image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            expected = make_batch([image], pre)
            sent, got = cuda.alloc_pinned(image.size), cuda.alloc_pinned(expected.images.size)
            sent[:] = image.ravel()
            source, target = cuda.alloc(image.size), cuda.alloc(expected.images.size)
            cuda.copy_to_device(cuda.address(source), sent, stream)
            (taken,) = intake.take(Frame(cuda.address(source), image, cuda.address(stream)))
            np.testing.assert_array_equal(intake.to_host(taken), image)
            placed = place_batch([taken], pre, expected.canvas_hw)
            intake.fill_and_wait(placed.images, cuda.address(target))
            cuda.copy_to_host(got, cuda.address(target), stream)
            cuda.synchronize_stream(stream)
            np.testing.assert_array_equal(got.reshape(expected.images.shape), expected.images)
            for memory in (source, target):
                cuda.free(memory)
            for array in (sent, got):
                cuda.free_pinned(array)
        cuda.destroy_stream(stream)
        del stream, memory, source, target
    intake.close()


@pytest.mark.parametrize("backend", ["cuda", "cpu"])
def test_tensors_of_torch_on_a_stream_of_their_own(tmp_path: Path, backend: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="the tensors")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    model = write_red_onnx(tmp_path / "red.onnx", manifest_with(inputs=InputShapes(1, 16, 64, 512, 64, 512)))
    images = [red_image(height, width, (8, 12, width - 8, height - 4)) for height, width in SIZES if height > 20]
    try:
        detector = Detector(model, backend=backend)
    except BackendError as error:
        pytest.skip(str(error))

    def frames() -> Any:
        """Each frame is finished late, on a stream that is not the default one."""
        busy = torch.ones(4000, 4000, device="cuda")
        with torch.cuda.stream(torch.cuda.Stream()):
            for image in images:
                tensor = torch.zeros(image.shape, dtype=torch.uint8, device="cuda")
                (busy @ busy).sum()
                tensor.copy_(torch.from_numpy(image).pin_memory(), non_blocking=True)
                yield tensor

    with detector:
        wanted = detector(images)
        with torch.cuda.stream(torch.cuda.Stream()):
            made = [torch.from_numpy(image).pin_memory().to("cuda", non_blocking=True) for image in images]
            at_once, as_list = detector.detect(made), detector(made)
        for found in (at_once, as_list, list(detector.stream(frames()))):
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one.boxes, other.boxes)  # type: ignore[union-attr]
                np.testing.assert_array_equal(one.scores, other.scores)  # type: ignore[union-attr]
