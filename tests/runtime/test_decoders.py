"""Decoding by nvImageCodec: only for models whose AP was measured with it, and with what OpenCV's pixels give."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.decoders import DECODERS, Measured, note_path, open_decoder, read_note, require_measured, write_note
from runtime.detect import main as detect
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import ImageError, decode
from runtime.images.device_array import host_array
from runtime.images.nvimgcodec import NvImageCodec

from ..support.fakes import MANIFEST, RedBackend, red_image, write_red_onnx
from ..support.nvimgcodec_fake import FakeNvImageCodec

SIZES = [(60, 80), (128, 160), (57, 111), (64, 64)]
CPU = Measured("nvimgcodec", "0.9.9", "cpu", MANIFEST.graph_sha256, 72, 0.59, 0.59)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeNvImageCodec:
    return FakeNvImageCodec().install(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{height}.jpg" for height, _ in SIZES]
    for path, (height, width) in zip(paths, SIZES, strict=True):
        image = red_image(height, width, (8, 12, width - 8, height - 4))
        cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    cv2.imwrite(str(tmp_path / "last.png"), red_image()[..., ::-1])
    return [*paths, tmp_path / "last.png"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnx", reason="builds the test's graph")
    pytest.importorskip("onnxruntime", reason="runs it")
    return write_red_onnx(tmp_path / "red.onnx")


def same(found: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(found, wanted, strict=True):
        for field in dataclasses.fields(Detections):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_no_note(tmp_path: Path) -> None:
    assert read_note(tmp_path / "model.onnx") == []
    assert DECODERS == ("opencv", "nvimgcodec")
    assert open_decoder("opencv", None) is None
    with pytest.raises(UserError, match="decode is 'pil', expected"):
        open_decoder("pil", None)  # type: ignore[arg-type]


def test_a_note_keeps_what_was_measured_last(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    gpu, newer = dataclasses.replace(CPU, place="gpu", ap=0.58), dataclasses.replace(CPU, version="1.0")
    for measured in (CPU, gpu, newer):
        write_note(model, measured)
    assert read_note(model) == [gpu, newer]
    assert note_path(model).name == "model.onnx.decoders.json"


@pytest.mark.parametrize("content", ["", "[]", '{"measured": 3}', '{"measured": [{"decoder": "x"}]}', "\xff"])
def test_a_damaged_note(tmp_path: Path, content: str) -> None:
    note_path(tmp_path / "model.onnx").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"model\.onnx\.decoders\.json: "):
        read_note(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "measured",
    [
        None,
        dataclasses.replace(CPU, version="0.9.8"),
        dataclasses.replace(CPU, place="gpu"),
        dataclasses.replace(CPU, graph_sha256="7" * 64),
    ],
)
def test_a_decoder_that_was_not_measured_is_refused(
    model: Path, library: FakeNvImageCodec, measured: Measured | None
) -> None:
    if measured is not None:
        write_note(model, measured)
    message = (
        r"red\.onnx: its AP with nvimgcodec 0\.9\.9 on the CPU was not measured, .*: python -m export\.verify "
        r"REFERENCE .*red\.onnx --decode nvimgcodec --annotations JSON --images DIR"
    )
    with pytest.raises(UserError, match=message):
        Detector(model, backend="cpu", decode="nvimgcodec")
    write_note(model, CPU)
    assert require_measured(model, MANIFEST, NvImageCodec(None)) == CPU
    Detector(model, backend="cpu", decode="nvimgcodec").close()


def test_a_backend_without_a_path_takes_only_an_opened_decoder(library: FakeNvImageCodec, files: list[Path]) -> None:
    backend = RedBackend()
    with pytest.raises(UserError, match=r"decode='nvimgcodec' needs the model's path, or pass NvImageCodec\(...\)"):
        Detector(backend, decode="nvimgcodec")
    with pytest.raises(UserError, match="decode is 'pil', expected"):
        Detector(backend, decode="pil")  # type: ignore[arg-type]
    assert not backend.is_closed, "it belongs to the caller"
    assert len(Detector(backend, decode=NvImageCodec(None))(files[0])) == 2


def test_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(
        UserError, match=r"nvImageCodec cannot be imported .*: pip install 'atss-toolkit\[nvimgcodec\]'"
    ):
        Detector(model, backend="cpu", decode="nvimgcodec")


def test_files_have_the_detections_that_opencv_gives_them(
    model: Path, library: FakeNvImageCodec, files: list[Path]
) -> None:
    write_note(model, CPU)
    with Detector(model, backend="cpu") as plain, Detector(model, backend="cpu", decode="nvimgcodec") as detector:
        wanted = plain(files)
        assert [len(each) for each in wanted] == [1] * len(files)
        for _ in range(3):  # in several threads
            same(detector(files), wanted)
        same([detector(path) for path in files], wanted)
        assert library.decoded == 4 * len(SIZES), "the PNG file is OpenCV's"
        library.change = lambda pixels: None  # what it cannot decode is OpenCV's too
        same(detector(files), wanted)
        files[0].write_bytes(files[0].read_bytes()[:400])
        with pytest.raises(ImageError, match="truncated"):
            detector(files[0])
        with pytest.raises(ImageError, match="megapixels"):
            detector.load(files[1], max_pixels=1000)


def test_the_command(model: Path, library: FakeNvImageCodec, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not measured"):
        detect(
            [str(model), *map(str, files), "-o", str(tmp_path / "out"), "--decode", "nvimgcodec", "--backend", "cpu"]
        )
    write_note(model, CPU)
    rows = []
    for extra in ([], ["--decode", "nvimgcodec"], ["--decode", "nvimgcodec", "--json-only"]):
        out = tmp_path / "-".join(["out", *extra])
        assert detect([str(model), *map(str, files), "-o", str(out), "--backend", "cpu", *extra]) == 0
        rows.append(json.loads((out / "detections.json").read_text())["images"])
        assert len(list(out.glob("*.jpg"))) == (0 if "--json-only" in extra else len(files))
    assert rows[0] == rows[1] == rows[2]
    assert library.decoded == 2 * len(SIZES)


def test_on_a_gpu_images_stay_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[Path]) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="the stand-in takes its enumerations from cuda-python")
    from ..support.device_frames import Producer
    from ..support.engines import MANIFEST as ENGINES
    from ..support.engines import write_standin_engine
    from ..support.standin.install import install

    stand_in = install(monkeypatch)
    producer = Producer(stand_in.driver)
    library = FakeNvImageCodec(lambda pixels: producer.frame(pixels, "dlpack")).install(monkeypatch)
    engine = write_standin_engine(tmp_path, stand_in)
    write_note(engine, dataclasses.replace(CPU, place="gpu", graph_sha256=ENGINES.graph_sha256))
    with Detector(engine) as plain:
        wanted = plain([decode(path) for path in files])  # all pixels, as on the GPU; OpenCV divides large files
    with Detector(engine, decode="nvimgcodec") as detector:
        same(detector(files), wanted)
        same(list(detector.stream(files)), wanted)
    assert library.decoded == 2 * len(SIZES)
    assert stand_in.driver.calls.count("cuLaunchKernel") == 2 * len(SIZES)
    with Detector(RedBackend(), decode=NvImageCodec(None)) as on_cpu:
        assert len(on_cpu(files[0])) == 2
    gc.collect()
    producer.close()
    stand_in.check_end()


def test_the_real_library_gives_opencvs_pixels(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="the library itself")
    decoder = NvImageCodec(None)
    random = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(random.integers(0, 256, (123, 217, 3), dtype=np.uint8), (9, 9), 3)
    kinds = [
        [],
        [cv2.IMWRITE_JPEG_QUALITY, 50],
        [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    ]
    for pixels in (smooth, smooth[..., 0], smooth[:1, :1]):
        for kind in kinds:
            data = cv2.imencode(".jpg", pixels, kind)[1].tobytes()
            np.testing.assert_array_equal(host_array(decoder(data)), decode(data))
    assert decoder(b"\xff\xd8\xff" + bytes(100)) is None
