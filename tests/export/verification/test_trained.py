"""Conversions of a trained detector, where there is one: `scripts/quickstart.sh` makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate, list_images
from export.quantization.convert import convert_file
from export.verification.comparison import open_model_file
from export.verification.conversion import verify_conversion
from export.verification.matching import MatchTolerance, count_unmatched
from runtime.backends import open_backend
from runtime.coco import CocoDataset, load_coco
from runtime.coco.evaluation import score_detector
from runtime.detector import Detector

from ..conftest import SCHEMES

IMAGES = 64


@pytest.fixture(scope="module")
def source(repository: Path) -> Path:
    for name in ("quickstart", "shapes"):
        path = repository / "runs" / name / "model.onnx"
        if path.exists():
            return path
    pytest.skip("no trained detector in runs/quickstart: run scripts/quickstart.sh")


@pytest.fixture(scope="module")
def shapes(repository: Path) -> Path:
    folder = repository / "data" / "shapes"
    if not (folder / "val.json").exists():
        pytest.skip("no data/shapes: run scripts/quickstart.sh, or python -m train.shapes data/shapes")
    return folder


@pytest.fixture(scope="module")
def dataset(shapes: Path) -> CocoDataset:
    return load_coco(shapes / "val.json", shapes / "val")


@pytest.fixture(scope="module")
def files(source: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    model, manifest = load_deployed(source)
    calibration = calibrate(model, manifest, list_images(shapes / "train", 100), progress=False)
    paths = {"fp32": source} | {name: folder / f"{name}.onnx" for name in SCHEMES}
    for name, scheme in SCHEMES.items():
        convert_file(source, paths[name], scheme, calibration)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
def test_a_trained_detector_passes(name: str, files: dict[str, Path], dataset: CocoDataset) -> None:
    checks = verify_conversion(files["fp32"], files[name], [dataset.image(i) for i in range(3)])
    assert [check for check in checks if not check.passed] == []
    assert all(check.compared for check in checks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "points"), [("fp16", 0.1), ("int8", 0.5), ("int8-cpu", 0.5)])
def test_little_ap_is_lost(name: str, points: float, files: dict[str, Path], dataset: CocoDataset) -> None:
    ap = []
    for path in (files["fp32"], files[name]):
        with Detector(open_model_file(path).backend) as detector:
            ap.append(score_detector(detector, dataset).metrics.values["AP"])
    assert ap[0] - ap[1] < points / 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "same", "share"),
    [
        ("fp32", MatchTolerance(0.98, 0.1, 1e-3), 0.999),
        ("fp16", MatchTolerance(0.98, 0.1, 1e-3), 0.99),
        ("int8", MatchTolerance(0.9, 2.0, 0.05), 0.9),
        ("int8-cpu", MatchTolerance(0.9, 2.0, 0.05), 0.9),
    ],
)
def test_openvino_detects_the_same(
    name: str, same: MatchTolerance, share: float, files: dict[str, Path], dataset: CocoDataset
) -> None:
    """8-bit kernels of the two round sums at other places of the graph."""
    pytest.importorskip("openvino")
    images = [dataset.image(i) for i in range(IMAGES)]
    found = []
    for backend in ("cpu", "openvino"):
        # In ONNX Runtime with exact sums, which not every processor's kernels have for the layout of TensorRT.
        opened = (
            open_model_file(files[name]).backend
            if backend == "cpu"
            else open_backend(files[name], backend=backend, allow_saturation=True)
        )
        with Detector(opened) as detector:
            found.append(list(detector(images)))
    total = sum(len(rows) for side in found for rows in side)
    alone = sum(count_unmatched(a, b, same) + count_unmatched(b, a, same) for a, b in zip(*found, strict=True))
    assert total > 10 * IMAGES
    assert 1 - alone / total >= share
