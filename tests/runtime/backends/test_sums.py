"""8-bit files whose sums saturate are refused on processors that would saturate, by whatever runs a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="one of the backends")

from runtime import detect
from runtime.backends import BackendError, open_backend
from runtime.backends import saturation as sums
from runtime.backends.saturation import may_saturate
from runtime.benchmark import __main__ as benchmark
from runtime.coco import command as evaluate
from runtime.detector import Detector
from runtime.loadgen import __main__ as loadgen
from runtime.machine.processor import Processor
from runtime.manifest import Manifest

from ...support.fakes import manifest_with, write_red_onnx

AVX2 = Processor("x86_64", "AMD EPYC 7B12", frozenset({"avx2"}))
VNNI = Processor("x86_64", "AMD EPYC 9B14", frozenset({"avx2", "avx512_vnni"}))
UNKNOWN = Processor("AMD64", None, frozenset())
FULL = manifest_with(precision="int8", sums_fit_16_bits=False)
OLD = manifest_with(precision="int8")
FITS = manifest_with(precision="int8", sums_fit_16_bits=True)


@pytest.mark.parametrize(
    ("manifest", "processor", "expected"),
    [
        (manifest_with(), AVX2, False),
        (manifest_with(precision="fp8"), UNKNOWN, False),
        (FITS, AVX2, False),
        (FITS, UNKNOWN, False),
        (FULL, VNNI, False),
        (OLD, VNNI, False),
        (FULL, AVX2, True),
        (OLD, AVX2, True),
        (FULL, UNKNOWN, True),
    ],
)
def test_what_may_saturate(manifest: Manifest, processor: Processor, expected: bool) -> None:
    assert may_saturate(manifest, processor) == expected


@pytest.fixture(params=["cpu", "openvino", "auto"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return request.param


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_red_onnx(tmp_path / "full.onnx", FULL)


def commands(path: Path, folder: Path) -> dict[str, Callable[[list[str]], object]]:
    """Everything that runs a model, as a user calls it; the model is opened before the images are looked for."""
    images = ["--images", str(folder)]
    truth = ["--annotations", str(folder / "none.json")]
    return {
        "detect": lambda more: detect.main([str(path), str(folder), "--out", str(folder / "out"), *more]),
        "evaluate": lambda more: evaluate.main([str(path), *truth, *images, *more]),
        "benchmark": lambda more: benchmark.main([str(path), "--num-images", "2", "--rounds", "1", *more]),
        "loadgen": lambda more: loadgen.main(
            [str(path), "--scenario", "Offline", *images, "-o", str(folder / "log"), *more]
        ),
    }


@pytest.mark.parametrize("processor", [AVX2, UNKNOWN], ids=["avx2", "unknown"])
def test_a_detector_refuses(backend: str, processor: Processor, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "read_processor", lambda: processor)
    with pytest.raises(BackendError) as caught:
        Detector(full, backend=backend)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert "need more than 16 bits" in said
    assert "python -m export.quantize MODEL.onnx --precision int8 --target cpu" in said
    assert "--allow-saturation" in said
    assert ("AMD EPYC 7B12 (AVX2) adds them in 16" in said) == (processor is AVX2)
    assert ("it is unknown whether AMD64 (features unknown)" in said) == (processor is UNKNOWN)
    with Detector(full, backend=backend, allow_saturation=True) as detector:
        assert detector.manifest == FULL


def test_what_fits_or_sums_exactly_runs(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for manifest, processor in ((FITS, AVX2), (FITS, UNKNOWN), (FULL, VNNI), (OLD, VNNI)):
        monkeypatch.setattr(sums, "read_processor", lambda processor=processor: processor)
        open_backend(write_red_onnx(tmp_path / "red.onnx", manifest), backend=backend).close()


@pytest.mark.parametrize("command", ["detect", "evaluate", "benchmark", "loadgen"])
@pytest.mark.parametrize("manifest", [FULL, OLD], ids=["full", "made before"])
def test_every_command_refuses(
    command: str, manifest: Manifest, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2
    import numpy as np

    if command == "loadgen":
        pytest.importorskip("mlperf_loadgen")
    path = write_red_onnx(tmp_path / "full.onnx", manifest)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.zeros((64, 64, 3), np.uint8))
    (folder / "none.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}], "annotations": [], '
        '"categories": [{"id": 7, "name": "red"}]}'
    )
    monkeypatch.setattr(sums, "read_processor", lambda: AVX2)
    with pytest.raises(BackendError, match=r"need more than 16 bits, .*--allow-saturation"):
        commands(path, folder)[command](["--backend", backend])
