"""A recipe's size divisor holds from training to detection: no canvas is of another one's multiples."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from export.graph.shapes import ExportError, input_shapes
from export.onnx_model.file import graph_sha256
from export.onnx_model.network import load_deployed
from export.to_onnx import main
from export.trt.profiles import ProfileError, make_profiles
from export.verification.images import make_cases, synthetic_images
from runtime.backends import BackendError
from runtime.backends.ort.backend import OrtBackend
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.manifest import InputShapes, Manifest, Preprocess, Thresholds
from train import shapes
from train.checkpoint import Classes, load_detector
from train.config import Augment, Backbone, Config, Data, Head, Model, Pyramid, Schedule
from train.config.recipes import atss_tiny
from train.model.backbones import COARSEST, STRIDES, build_backbone
from train.trainer.evaluation import TorchBackend, detector_manifest
from train.trainer.loop import train_detector

DIVISOR = 64
# Images of 4:3 come to 96 × 128: multiples of 32, of which canvases must make 128 × 128.
PRE = Preprocess(short_side=96, long_side=160, size_divisor=DIVISOR)
DIVISORS = (32, 64, 96, 128, 256)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of two steps, evaluated at its end."""
    folder = tmp_path_factory.mktemp("divisor")
    shapes.generate(folder / "data", shapes.Settings(train=4, val=2, seed=3, size=96), progress=False)
    config = Config(
        recipe="divisor",
        preprocess=PRE,
        model=Model(
            backbone=Backbone("resnet18", weights="none", stem_channels=8),
            pyramid=Pyramid(channels=16, levels=4),
            head=Head(convolutions=1, group_norm_groups=4, prior_probability=0.3),
        ),
        augment=Augment(short_side_min=96, short_side_max=96),
        data=Data(
            *(str(folder / "data" / name) for name in ("train.json", "train", "val.json", "val")),
            workers=0,
        ),
        schedule=Schedule(steps=2, batch=2, warmup_steps=1, clip_norm=1.0),
        run=replace(atss_tiny().run, device="cpu", precision="fp32"),
    )
    return train_detector(config, folder / "run").last


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """Exported by the command, which compares the file with the checkpoint."""
    out = trained.with_name("model.onnx")
    assert main([str(trained), "-o", str(out), "--batch-max", "4"]) == 0
    return out


def found(detector: Detector, images: list[np.ndarray]) -> list[Detections]:
    with detector:
        return detector.detect(images)


def test_detections_are_torchs_on_canvases_of_the_recipe(trained: Path, exported: Path) -> None:
    loaded = load_detector(trained)
    small = [photo[:height, :width] for photo in synthetic_images() for height, width in ((240, 320), (320, 240))]
    ours = found(Detector(exported, backend="cpu"), small)
    theirs = found(Detector(TorchBackend(loaded.detector, loaded.config, loaded.classes)), small)
    assert all(len(image) > 0 for image in theirs), "else this shows little"
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.classes, other.classes)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


def test_the_runtime_lays_images_on_its_canvases(exported: Path) -> None:
    backend = OrtBackend(exported)
    seen = set()
    real = backend.infer

    def spy(images: np.ndarray, *rest: np.ndarray, **options: bool) -> object:
        seen.add(images.shape[1:3])
        return real(images, *rest, **options)

    backend.infer = spy  # type: ignore[assignment, method-assign]
    found(Detector(backend), [np.zeros((240, 320, 3), np.uint8), np.zeros((100, 200, 3), np.uint8)])
    assert seen == {(128, 128), (128, 192)}
    with pytest.raises(BackendError, match="canvas 160×96, expected sides that are multiples of 64"):
        OrtBackend(exported).infer(np.zeros((1, 96, 160, 3), np.uint8), np.array([[96, 160]], np.int32))


@pytest.mark.parametrize("side", [64, 192, 1344])
def test_every_multiple_in_range_runs(side: int, trained: Path, exported: Path) -> None:
    backend, loaded = OrtBackend(exported), load_detector(trained)
    assert backend.manifest.inputs == InputShapes(1, 4, 64, 1344, 64, 1344)
    images = np.full((1, side, 64, 3), 90, np.uint8)
    images[0, ::7, ::5] = 200
    sizes = np.array([[side, 64]], np.int32)
    raw = backend.infer(images, sizes, all_candidates=True)
    torchs = TorchBackend(loaded.detector, loaded.config, loaded.classes).infer(images, sizes)
    ours, theirs = (np.sort(r.candidate_scores[r.candidate_scores > 0]) for r in (raw, torchs))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_engines_profiles_are_of_its_multiples(exported: Path) -> None:
    model, manifest = load_deployed(exported)
    assert manifest.graph_sha256 == graph_sha256(model)
    for profile in make_profiles(manifest):
        assert all(side % DIVISOR == 0 for shape in (profile.least, profile.best, profile.most) for side in shape[1:])
    with pytest.raises(ProfileError, match="--shapes 96x160: expected sides that are multiples of 64"):
        make_profiles(manifest, shapes=["96x160"])


def manifest_of(pre: Preprocess, inputs: InputShapes) -> Manifest:
    config = Config(recipe="test", preprocess=pre, thresholds=Thresholds())
    return detector_manifest(config, Classes(("a",), (1,)), inputs)


@pytest.mark.parametrize("divisor", DIVISORS)
@pytest.mark.parametrize("short_side", [1, 100, 192, 800])
def test_shapes_and_canvases_of_other_divisors(divisor: int, short_side: int) -> None:
    pre = Preprocess(short_side=short_side, long_side=short_side * 5 // 3 + 1, size_divisor=divisor)
    shapes_ = input_shapes(pre, 4)
    bounds = (shapes_.height_min, shapes_.height_max, shapes_.width_min, shapes_.width_max)
    assert all(bound % divisor == 0 for bound in bounds)
    assert shapes_.height_min == max(64, divisor)
    assert 1344 <= shapes_.height_max < max(1344, pre.long_side) + divisor
    manifest = manifest_of(pre, shapes_)
    for case in make_cases(manifest, synthetic_images()[:1]):
        height, width = case.images.shape[1:3]
        assert height % divisor == width % divisor == 0
        assert shapes_.height_min <= min(height, width) <= max(height, width) <= shapes_.height_max
    for profile in make_profiles(manifest):
        assert all(side % divisor == 0 for shape in (profile.least, profile.best, profile.most) for side in shape[1:])


def test_a_canvas_is_of_the_recipes_divisor() -> None:
    assert input_shapes(PRE, 1, (128, 192)) == InputShapes(1, 1, 128, 128, 192, 192)
    with pytest.raises(ExportError, match="--canvas 96 160: expected height and width in multiples of 64"):
        input_shapes(PRE, 1, (96, 160))
    with pytest.raises(ExportError, match=r"--canvas 64 128: .* give at least 128 for both"):
        input_shapes(PRE, 1, (64, 128))
    with pytest.raises(ExportError, match=r"size_divisor is 48, which its network doesn't take; .* multiple of 32"):
        input_shapes(replace(PRE, size_divisor=48), 1)


@pytest.mark.parametrize("side", [COARSEST, 3 * COARSEST])
def test_what_the_network_needs_is_its_coarsest_stride(side: int) -> None:
    """With half of it the pyramid's maps don't fit each other: a smaller divisor is refused for a reason."""
    network = build_backbone(Backbone("resnet18", weights="none", stem_channels=8)).eval()
    with torch.no_grad():
        for size in (side, side + COARSEST // 2):
            maps = network(torch.zeros(1, 3, size, size))
            doubled = [finer.shape[2] == 2 * coarser.shape[2] for finer, coarser in pairwise(maps)]
            assert all(doubled) == (size % COARSEST == 0)
            assert size % COARSEST or [m.shape[2] for m in maps] == [size // stride for stride in STRIDES]
