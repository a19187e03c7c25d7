"""What decoding by nvImageCodec costs is measured on a data set, and noted if it is little."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds the test's graph")
pytest.importorskip("onnxruntime", reason="runs it")

from export.api import verify
from export.verification import conversion
from export.verification.checks import Check
from export.verification.decoders import MAX_AP_LOSS, verify_decoder
from export.verify import main
from runtime.coco import load_coco
from runtime.coco.dataset import CocoDataset
from runtime.decoders import read_note
from runtime.detector import Detector
from runtime.errors import UserError

from ...support.fakes import MANIFEST, red_image, write_red_onnx
from ...support.nvimgcodec_fake import FakeNvImageCodec


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeNvImageCodec:
    return FakeNvImageCodec().install(monkeypatch)


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    folder = tmp_path / "images"
    folder.mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate([(60, 80), (90, 90), (70, 110), (120, 100)], 1):
        x1, y1, x2, y2 = 8, 12, width - 8, height - 4
        pixels = red_image(height, width, (x1, y1, x2, y2))
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 7, **box})
    categories = [{"id": 7, "name": "red"}, {"id": 9, "name": "other"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    return load_coco(tmp_path / "val.json", folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_red_onnx(tmp_path / "red.onnx")


def test_without_objects_there_is_nothing_to_compare(
    model: Path, library: FakeNvImageCodec, dataset: CocoDataset
) -> None:
    content = json.loads(dataset.json_path.read_text())
    dataset.json_path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(UserError, match="nothing to measure"):
        verify_decoder(model, "nvimgcodec", load_coco(dataset.json_path, dataset.root), backend="cpu")
    assert not read_note(model)


def test_equal_pixels_lose_nothing_and_are_accepted(
    model: Path, library: FakeNvImageCodec, dataset: CocoDataset
) -> None:
    found = verify_decoder(model, "nvimgcodec", dataset, backend="cpu")
    assert found.passed
    (check,) = found.checks
    assert (check.worst, check.limit, check.compared) == (0, MAX_AP_LOSS, 4)
    assert library.decoded == 4
    (measured,) = read_note(model)
    assert (measured.decoder, measured.version, measured.place) == ("nvimgcodec", "0.9.9", "cpu")
    assert measured.graph_sha256 == MANIFEST.graph_sha256
    assert measured.images == 4
    assert measured.ap == measured.ap_opencv > 0.5
    assert "red.onnx.decoders.json" in found.table
    with Detector(model, backend="cpu", decode="nvimgcodec") as detector:
        assert len(detector(dataset.path(0))) == 1


def test_a_decoder_that_costs_ap_is_not_accepted(model: Path, library: FakeNvImageCodec, dataset: CocoDataset) -> None:
    library.change = lambda pixels: np.roll(pixels, 9, axis=1)
    found = verify_decoder(model, "nvimgcodec", dataset, backend="cpu")
    assert not found.passed
    assert "TOO LARGE" in found.table
    assert read_note(model) == []


def test_an_image_of_another_size_is_not_silently_left_out(
    model: Path, library: FakeNvImageCodec, dataset: CocoDataset
) -> None:
    library.change = lambda pixels: pixels[:-1] if pixels.shape[0] == 60 else pixels
    with pytest.raises(
        UserError, match=r"0\.9\.9 reads fewer images than OpenCV does; the first: .*1\.jpg: the image is"
    ):
        verify_decoder(model, "nvimgcodec", dataset, backend="cpu")
    assert read_note(model) == []


def test_what_it_needs(model: Path, dataset: CocoDataset) -> None:
    with pytest.raises(UserError, match="--decode nvimgcodec is measured on annotated images: give --annotations JSON"):
        main(["last.pt", str(model), "--decode", "nvimgcodec", "--images", str(dataset.root)])
    with pytest.raises(UserError, match="expected nvimgcodec"):
        verify_decoder(model, "opencv", dataset, backend="cpu")


def test_a_verification_measures_it_too(
    model: Path, library: FakeNvImageCodec, dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Check("file", "another comparison", 1, 0, 0)
    monkeypatch.setattr(conversion, "verify_conversion", lambda *_: [other])
    found = verify("float32.onnx", model, images=dataset.root, decode="nvimgcodec", annotations=dataset.json_path)
    assert found.checks[0] == other
    assert found.checks[1].quantity.startswith("decoding")
    assert found.passed
