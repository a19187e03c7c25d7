"""An engine that is built and run on a real GPU, against ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.to_trt import main
from export.verification.matching import count_unmatched
from runtime.backends.engine_file import Flavor, read_description
from runtime.backends.ort.backend import OrtBackend
from runtime.backends.trt.backend import TrtBackend
from runtime.cuda import Binding, CudaError, open_cuda
from runtime.detections import postprocess
from runtime.detector import Detector
from runtime.manifest import Precision
from runtime.stopwatch import Stopwatch

from ..conftest import Exported

pytestmark = pytest.mark.gpu

SHAPES = ((1, 192, 256), (4, 192, 256), (3, 256, 192))


@pytest.fixture(scope="session", autouse=True)
def _can_run() -> None:
    """Before models are made, which takes a minute that tests of other things could have."""
    try:
        open_cuda().close()
    except CudaError as error:
        pytest.skip(str(error))
    if not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_rtx"))):
        pytest.skip("neither TensorRT nor TensorRT for RTX is installed")


def needs(flavor: Flavor) -> None:
    if importlib.util.find_spec("tensorrt" if flavor == "tensorrt" else "tensorrt_rtx") is None:
        pytest.skip(f"the library of {flavor} is not installed")


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def engine(request: pytest.FixtureRequest, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flavor: Flavor = request.param
    needs(flavor)
    out = tmp_path_factory.mktemp("engine") / f"{flavor}.engine"
    main([str(exported.model), "-o", str(out), "--flavor", flavor, "--batch", "1", "4", "4"])
    return out


@pytest.fixture(params=["cuda-python", "pycuda"])
def binding(request: pytest.FixtureRequest) -> Binding:
    if importlib.util.find_spec("cuda" if request.param == "cuda-python" else "pycuda") is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def feed(batch: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return images, np.full((batch, 2), (height, width), np.int32)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_an_engine_gives_the_cpus_detections(
    engine: Path, exported: Exported, binding: Binding, cuda_graphs: bool
) -> None:
    cpu = OrtBackend(exported.model)
    limits = cpu.manifest.thresholds
    stopwatch = Stopwatch()
    with TrtBackend(engine, binding=binding, cuda_graphs=cuda_graphs, most_shapes=2) as backend:
        for shape in SHAPES * 3:  # the first run of a shape, its graph, the graph again; and shapes that went
            images, sizes = feed(*shape)
            expected = postprocess(cpu.infer(images, sizes), limits)
            given = postprocess(backend.infer(images, sizes, stopwatch=stopwatch), limits)
            assert sum(map(len, expected)) > 0
            for a, b in zip(expected, given, strict=True):
                assert count_unmatched(a, b) + count_unmatched(b, a) <= 2
    assert all(seconds > 0 for seconds in stopwatch.seconds.values())
    assert set(stopwatch.seconds) == {"copy_in", "infer", "copy_out"}


def test_threads_get_what_one_gets(engine: Path, binding: Binding) -> None:
    feeds = [feed(*SHAPES[index % len(SHAPES)]) for index in range(48)]
    with TrtBackend(engine, binding=binding) as backend:
        limits = backend.manifest.thresholds
        alone = [postprocess(backend.infer(*each), limits) for each in feeds]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda each: postprocess(backend.infer(*each), limits), feeds))
    # RTX exchanges kernels for better ones while it runs, which round differently.
    most = 2 if engine.name.startswith("rtx") else 0
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert count_unmatched(a, b) + count_unmatched(b, a) <= most


def test_tensors_on_the_gpu_get_the_detections_of_arrays(engine: Path, binding: Binding) -> None:
    torch = pytest.importorskip("torch", reason="the tensors")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((192, 256), (480, 640), (150, 101))]
    with Detector(engine, binding=binding) as detector:
        detector(images)  # RTX exchanges kernels for better ones while it runs, which round differently
        expected = detector(images)
        with torch.cuda.stream(torch.cuda.Stream()):
            given = detector([torch.from_numpy(image).pin_memory().to("cuda", non_blocking=True) for image in images])
    for a, b in zip(expected, given, strict=True):
        assert count_unmatched(a, b) + count_unmatched(b, a) <= 2


@pytest.mark.parametrize("extra", [[], ["--version-compatible"]])
def test_a_half_precision_engine_is_one(extra: list[str], deployed: dict[Precision, Path], tmp_path: Path) -> None:
    """As the inspector counts its convolutions, and as its description repeats."""
    needs("tensorrt")
    out = tmp_path / "model.engine"
    main([str(deployed["fp16"]), "-o", str(out), "--flavor", "tensorrt", "--batch", "1", "1", "1", *extra])
    layers = read_description(out).layers
    assert layers["fp16"] / sum(layers.values()) > 0.5
    with TrtBackend(out) as backend:
        images, sizes = feed(*SHAPES[0])
        assert postprocess(backend.infer(images, sizes), backend.manifest.thresholds)
