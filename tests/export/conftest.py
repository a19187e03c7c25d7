"""A tiny untrained detector as a checkpoint file, and the ONNX files exported from it once for all tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import onnx
import pytest
import torch

from export.calibration import Calibration
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.file import graph_sha256
from export.onnx_model.network import load_deployed
from export.quantization.calibrate import calibrate, list_images
from export.quantization.convert import convert_file
from export.quantization.scheme import Scheme
from export.verification.images import synthetic_images
from runtime.manifest import METADATA_KEY, Precision, Preprocess, from_json, to_json
from train.build import build_detector
from train.checkpoint import Checkpoint, Classes, LoadedDetector, load_detector, save_checkpoint
from train.config import Backbone, Config, Head, Model, Pyramid
from train.pretrained import dialects

from ..conftest import made_once
from ..support.systems import narrowed, saved

NAME = "best.pt"
SCHEMES = {
    "fp16": Scheme("fp16"),
    "bf16": Scheme("bf16"),
    "int8": Scheme("int8"),
    "int8-cpu": Scheme("int8", "cpu"),
    "fp8": Scheme("fp8"),
}


class Exported(NamedTuple):
    """A checkpoint, the file made of it by the command, and what the command said."""

    loaded: LoadedDetector
    checkpoint: Path
    model: Path
    command: subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights are random, but the batch norms have statistics that folding must get right, and scores are high."""
    torch.manual_seed(0)
    settings = Config(
        recipe="test",
        preprocess=Preprocess(short_side=192, long_side=256),
        model=Model(
            backbone=Backbone("resnet18", weights="none", stem_channels=8),
            pyramid=Pyramid(channels=16, levels=5),
            head=Head(convolutions=1, group_norm_groups=4, prior_probability=0.3),
        ),
    )
    detector = build_detector(settings.model, 3, settings.preprocess)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, torch.nn.Conv2d) and module.out_channels in (1, 3, 4):
            torch.nn.init.normal_(module.weight, std=0.3)  # outputs that vary from cell to cell
    content = Checkpoint(
        settings, Classes(("circle", "square", "star"), (1, 2, 7)), 1, detector.state_dict(), None, {}, {}, 0.25, 0.25
    )
    return made_once(tmp_path_factory, "checkpoint", lambda at: save_checkpoint(at / NAME, content)) / NAME


@pytest.fixture(scope="session")
def exported(checkpoint: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exported by the command as a newcomer types it: in the repository's folder, nothing installed or on a path."""

    def make(folder: Path) -> None:
        command = subprocess.run(
            [sys.executable, "export/to_onnx.py", str(checkpoint), "-o", str(folder / "model.onnx")],
            cwd=repository,
            env={
                "PATH": "/usr/bin:/bin",
                "OMP_NUM_THREADS": "1",
                **{name: os.environ[name] for name in ("ATSS_HOME", "ATSS_TOOLKIT_CACHE")},
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert command.returncode == 0, command.stdout + command.stderr
        (folder / "command.json").write_text(json.dumps(vars(command)))

    folder = made_once(tmp_path_factory, "exported", make)
    said = subprocess.CompletedProcess(**json.loads((folder / "command.json").read_text()))
    return Exported(load_detector(checkpoint), checkpoint, folder / "model.onnx", said)


@pytest.fixture(scope="session")
def fixed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedDetector, Path]:
    """Another detector, of four levels, for one canvas and batch 1."""
    loaded = load_detector(checkpoint)
    model = replace(loaded.config.model, pyramid=Pyramid(channels=16, levels=4))
    torch.manual_seed(1)
    loaded = loaded._replace(
        config=replace(loaded.config, model=model), detector=build_detector(model, 3, loaded.config.preprocess).eval()
    )

    def make(folder: Path) -> None:
        content = checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 1, (192, 224)))
        (folder / "fixed.onnx").write_bytes(content)

    return loaded, made_once(tmp_path_factory, "fixed", make) / "fixed.onnx"


@pytest.fixture(scope="session")
def deformable(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedDetector, Path]:
    """Deformable towers; points, centerness from the class tower, ranked by class, the authors' thresholds."""
    model = narrowed(dialects.MM_FCOS.model)
    model = replace(model, head=replace(model.head, deformable=True), pyramid=replace(model.pyramid, levels=3))
    pre = Preprocess(short_side=96, long_side=128)

    def make(folder: Path) -> None:
        loaded = saved(model, dialects.AUTHORS_ATSS.thresholds, pre, folder / NAME)
        (folder / "model.onnx").write_bytes(checkpoint_to_graph(loaded, input_shapes(pre, 3)))

    folder = made_once(tmp_path_factory, "deformable", make)
    return load_detector(folder / NAME), folder / "model.onnx"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images to calibrate on."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(synthetic_images()):
        cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])  # OpenCV writes BGR
    return folder


@pytest.fixture(scope="session")
def calibration(exported: Exported, images: Path) -> Calibration:
    model, manifest = load_deployed(exported.model)
    return calibrate(model, manifest, list_images(images), progress=False)


@pytest.fixture(scope="session")
def converted(exported: Exported, calibration: Calibration, images: Path) -> dict[str, Path]:
    """The exported file by every scheme, named model.SCHEME.onnx, beside the images."""
    files = {name: images / f"model.{name}.onnx" for name in SCHEMES}
    for name, scheme in SCHEMES.items():
        convert_file(exported.model, files[name], scheme, calibration)
    return files


@pytest.fixture(scope="session")
def full_bits(exported: Exported, calibration: Calibration, images: Path) -> Path:
    """The exported file in int8 whose sums are for processors with VNNI."""
    path = images / "model.int8-cpu-vnni.onnx"
    convert_file(exported.model, path, Scheme("int8", "cpu-vnni"), calibration)
    return path


@pytest.fixture(scope="session")
def deployed(exported: Exported, converted: dict[str, Path]) -> dict[Precision, Path]:
    """The exported file in every precision, for TensorRT."""
    return {"fp32": exported.model} | {
        s.precision: converted[name] for name, s in SCHEMES.items() if s.target == "tensorrt"
    }


def restamp(model: onnx.ModelProto, path: Path) -> Path:
    """Write a changed model with a manifest that fits it, as if it had been exported so."""
    text = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    text.value = to_json(replace(from_json(text.value, "test"), graph_sha256=graph_sha256(model)))
    path.write_bytes(model.SerializeToString())
    return path


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put nodes into an order in which each follows what it reads."""
    made = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    ordered = []
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        assert ready
        for node in ready:
            made.update(node.output)
        ordered += ready
        waiting = [node for node in waiting if not made.issuperset(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
