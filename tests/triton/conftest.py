"""A trained detector, model repositories of it, and what its file detects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from benchmarks.triton_server import ENVIRONMENT, TritonServer, serve_command, served
from runtime.coco import load_coco
from runtime.detections import Detections
from runtime.detector import Detector

from ..support.triton_network import network_in_python

pytest.importorskip("tritonclient", reason="pip install 'atss-toolkit[triton]'")
STEPS = 120  # enough to know some of the training images by heart


class Made(NamedTuple):
    """A trained model, its data, and detections of its file in ONNX Runtime."""

    folder: Path
    model: Path
    annotations: Path
    images: Path
    files: list[Path]
    found: list[Detections]


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    if serve_command() is None:
        pytest.skip(f"no Triton server: scripts/triton_test.sh installs one, and {ENVIRONMENT} names its folder")
    folder = tmp_path_factory.mktemp("served")
    shapes = folder / "shapes"
    run("-m", "train.shapes", shapes, "--train", 24, "--val", 2, "--size", 128)
    run(
        *("-m", "train", "atss_tiny", "--out", folder / "run"),
        *("--data.train-json", shapes / "train.json", "--data.train-images", shapes / "train"),
        *("--schedule.steps", STEPS, "--schedule.batch", 4, "--schedule.warmup-steps", 10),
        *("--preprocess.short-side", 96, "--preprocess.long-side", 128, "--augment.crop", 128, 128),
        *("--augment.short-side-min", 96, "--augment.short-side-max", 96, "--run.precision", "fp32"),
    )
    model = folder / "shapes.onnx"
    run("-m", "export.to_onnx", folder / "run/last.pt", "-o", model, "--batch-max", 8)
    dataset = load_coco(shapes / "train.json", shapes / "train")
    files = [dataset.path(index) for index in range(len(dataset))]
    # Images of other shapes, for other canvases; and one that its decoder reduces.
    for number, (width, height) in enumerate([(128, 70), (70, 128), (512, 400), (41, 33)]):
        path = folder / f"other{number}.jpg"
        image = cv2.imread(str(files[number]))
        assert image is not None
        cv2.imwrite(str(path), cv2.resize(image, (width, height)))
        files.append(path)
    with Detector(model, backend="cpu", threads=1) as detector:
        found = [detector(file) for file in files]
    assert sum(map(len, found)) > 100
    return Made(folder, model, shapes / "train.json", shapes / "train", files, found)


@pytest.fixture(scope="session")
def repository(made: Made) -> Path:
    """Written by the command: `front` asks `front_network`, `inline` runs the network itself."""
    root = made.folder / "repository"
    run("-m", "export.to_triton", made.model, "-o", root, "--name", "front")
    network_in_python(root, "front_network")
    run("-m", "export.to_triton", made.model, "-o", root, "--name", "inline", "--network", "inline", "--backend", "cpu")
    return root


@pytest.fixture(scope="session")
def server(made: Made, repository: Path) -> Iterator[TritonServer]:
    with served(repository, made.folder) as running:
        yield running


def same(given: Detections, wanted: Detections) -> bool:
    """Whether two images' detections are the same to the last bit, in their types too."""
    return all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in (
            (given.boxes, wanted.boxes),
            (given.scores, wanted.scores),
            (given.classes, wanted.classes),
        )
    )
