"""Foreign checkpoints, loaded by their keys, compute here what they computed there (goldens, torchvision itself)."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from export.verification.matching import EXACT
from runtime.detections import Detections, postprocess
from runtime.errors import UserError
from train.__main__ import parse
from train.build import build_criterion, build_detector
from train.checkpoint import (
    Checkpoint,
    CheckpointError,
    LoadedDetector,
    initialize_from,
    load_detector,
    save_checkpoint,
)
from train.config import Pyramid
from train.loss.criterion import Losses, Targets
from train.model.detector import DenseOutputs
from train.pretrained import __main__ as pretrained
from train.pretrained.convert import ForeignError, convert
from train.pretrained.dialects import State
from train.trainer.evaluation import TorchBackend

GOLDENS = {
    "mm_atss_r50": "mm_atss",
    "mm_retinanet_r50": "mm_retinanet",
    "mm_fcos_r50": "mm_fcos",
    "off_atss_r50": "authors_atss",
}
# By the end of a key: what the goldens' README says was done to the weights after `rule.tensor_for`.
FACTORS = {
    "mm": [("atss_cls.weight", 3.0), ("conv_cls.weight", 3.0), ("atss_reg.weight", 0.25), ("conv_reg.weight", 0.25),
           ("retina_reg.weight", 0.25), ("retina_cls.weight", 0.7)],
    "off": [("cls_logits.weight", 3.0), ("bbox_pred.weight", 0.25)],
}  # fmt: skip
BIASES = ("atss_cls.bias", "conv_cls.bias", "retina_cls.bias", "cls_logits.bias")


class Golden(NamedTuple):
    dialect: str
    arrays: Any  # of the .npz
    image: np.ndarray  # uint8 [H, W, 3]
    loaded: LoadedDetector
    dense: DenseOutputs


def published(folder: Path, name: str) -> dict[str, Tensor]:
    """The state dict of a golden's model, made by its rule."""
    rule = runpy.run_path(str(folder / "rule.py"))
    keys = json.loads((folder / f"{name}.json").read_text())["keys"]
    state = {key: rule["tensor_for"](key, shape) for key, shape in keys.items()}
    for key in state:
        for end, factor in FACTORS[name.split("_")[0]]:
            if key.endswith(end):
                state[key] = state[key] * factor
        if key.endswith(BIASES):
            state[key] = state[key] - 4.5
    return state


def through_files(state: object, tmp_path: Path) -> LoadedDetector:
    """Convert a saved file and load the result, as a user does in two commands."""
    torch.save(state, tmp_path / "theirs.pth")
    found = convert(tmp_path / "theirs.pth")
    path = tmp_path / "ours.pt"
    save_checkpoint(path, Checkpoint(found.config, found.classes, 0, found.state, None, {}, {}, None, -1.0))
    return load_detector(path)


@pytest.fixture(scope="module", params=GOLDENS)
def golden(request: pytest.FixtureRequest, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = shared_dir / "goldens"
    loaded = through_files({"state_dict": published(folder, request.param)}, tmp_path_factory.mktemp("golden"))
    height, width, seed = json.loads((folder / f"{request.param}.json").read_text())["image"]
    image = runpy.run_path(str(folder / "rule.py"))["image"](height, width, seed)
    with torch.inference_mode():
        dense = loaded.detector(torch.from_numpy(image[None]))
    return Golden(GOLDENS[request.param], np.load(folder / f"{request.param}.npz"), image, loaded, dense)


def test_recognised_and_described(golden: Golden) -> None:
    assert golden.loaded.config.recipe == golden.dialect
    assert len(golden.loaded.classes.names) == 80
    assert golden.loaded.classes.names[:2] == ("person", "bicycle")
    assert (golden.loaded.classes.category_ids[0], golden.loaded.classes.category_ids[-1]) == (1, 90)


def test_raw_outputs(golden: Golden) -> None:
    """1e-3 of each map's largest value; FCOS's golden has the distances after the exponential."""
    for short, maps in zip(("cls", "reg", "ctr"), golden.dense, strict=True):
        for level, found in enumerate(maps):
            expected = golden.arrays[f"{short}{level}"]
            assert tuple(found.shape) == tuple(golden.arrays[f"{short}{level}_shape"])
            if short == "reg" and golden.dialect == "mm_fcos":
                found = found.exp()
            values = found.flatten()[:: int(golden.arrays[f"{short}{level}_stride"])][:512].numpy()
            assert np.abs(values - expected).max() < 1e-3 * max(np.abs(expected).max(), 1e-3), (short, level)


def detect(loaded: LoadedDetector, images: np.ndarray, sizes: np.ndarray) -> list[Detections]:
    backend = TorchBackend(loaded.detector, loaded.config, loaded.classes)
    return postprocess(backend.infer(images, sizes), backend.manifest.thresholds)


def unmatched(found: Detections, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:
    """Which expected rows have no partner of the same class, IoU > 0.98 and score within 1e-3; each serves once."""
    free = np.ones(len(found), bool)
    alone = []
    for row, (box, score, label) in enumerate(zip(boxes, scores, labels, strict=True)):
        low, high = np.maximum(box[:2], found.boxes[:, :2]), np.minimum(box[2:], found.boxes[:, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        areas = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - shared
        here = (shared > EXACT.iou * areas) | (np.abs(found.boxes - box).max(axis=1) < 0.01)  # an empty box has no IoU
        same = free & here & (found.classes == label)
        same &= np.abs(found.scores - score) <= EXACT.score
        if same.any():
            free[np.flatnonzero(same)[0]] = False
        else:
            alone.append(row)
    return alone


def test_detections(golden: Golden) -> None:
    sizes = np.array([golden.image.shape[:2]], np.int32)
    (found,) = detect(golden.loaded, golden.image[None], sizes)
    arrays = golden.arrays
    assert len(found) == len(arrays["det_scores"]) == 100
    assert unmatched(found, arrays["det_boxes"], arrays["det_scores"], arrays["det_labels"]) == []


def losses_of(golden: Golden) -> Losses:
    boxes = torch.from_numpy(golden.arrays["gt_boxes"]).unsqueeze(0)
    labels = torch.from_numpy(golden.arrays["gt_labels"]).unsqueeze(0)
    targets = Targets(boxes, labels, torch.ones(labels.shape, dtype=torch.bool))
    height, width = golden.image.shape[:2]
    with torch.no_grad():
        return build_criterion(golden.loaded.config.model)(golden.dense, targets, (height, width))


def test_losses(golden: Golden) -> None:
    found = losses_of(golden)
    arrays = golden.arrays
    box = "loss_reg" if "loss_reg" in arrays else "loss_bbox"
    assert found.classification.item() == pytest.approx(arrays["loss_cls"].sum(), rel=0.01)
    assert found.box.item() == pytest.approx(arrays[box].sum(), rel=0.01)
    if "loss_centerness" in arrays:
        assert found.centerness.item() == pytest.approx(arrays["loss_centerness"].sum(), rel=0.01)


TORCHVISION = {
    "retinanet_resnet50_fpn": "tv_retinanet",
    "retinanet_resnet50_fpn_v2": "tv_retinanet_v2",
    "fcos_resnet50_fpn": "tv_fcos",
}


def lively(model: torch.nn.Module, name_of: str) -> torch.nn.Module:
    """Weights that give detections of many classes all over the image, and norms as after training."""
    generator = torch.Generator().manual_seed(0)
    has_norm = name_of != "retinanet_resnet50_fpn"  # in the towers; without, their outputs are small
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.3, 0.7, generator=generator)
        if isinstance(module, torch.nn.Conv2d) and name.startswith("head."):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        if name.endswith("cls_logits"):
            module.weight.data *= 0.5 if has_norm else 4.0
            module.bias.data.fill_(-2.5)
        if name.endswith("bbox_reg"):
            module.weight.data *= 0.2
            module.bias.data.fill_(2.0 if "fcos" in name_of else 0.0)
    return model.eval()


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_models(name: str, tmp_path: Path) -> None:
    """On a canvas whose sides the coarse levels don't divide, with an image that fills it."""
    torch.manual_seed(0)
    made: Callable[..., Any] = getattr(torchvision.models.detection, name)
    theirs = lively(made(weights=None, weights_backbone=None, min_size=160, max_size=224), name)
    loaded = through_files(theirs.state_dict(), tmp_path)
    assert loaded.config.recipe == TORCHVISION[name]
    coarse = np.random.default_rng(1).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    image = coarse.repeat(16, axis=0).repeat(16, axis=1)  # 160 × 224: theirs has nothing to resize
    with torch.no_grad():
        expected = theirs([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
    (found,) = detect(loaded, image[None], np.array([image.shape[:2]], np.int32))
    assert len(found) == len(expected["scores"]) == (100 if name == "fcos_resnet50_fpn" else 300)
    assert len(set(found.classes.tolist())) > 5
    assert unmatched(found, *(expected[k].numpy() for k in ("boxes", "scores", "labels"))) == []


class Malicious:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "executed")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """A torchvision FCOS with two classes, as a file and as its state dict."""
    model = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    path = tmp_path_factory.mktemp("fcos") / "fcos.pth"
    torch.save(model.state_dict(), path)
    return path, model.state_dict()


def fails(content: object, path: Path, dialect: str | None = None) -> str:
    torch.save(content, path)
    with pytest.raises(ForeignError) as caught:
        convert(path, dialect)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_checkpoints(small_file: tuple[Path, State], tmp_path: Path) -> None:
    path, state = small_file
    with pytest.raises(ForeignError, match="no file"):
        convert(tmp_path / "missing.pth")
    for name, content in (("empty", b""), ("text", b"<html>not found</html>"), ("cut", path.read_bytes()[:5000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ForeignError, match="can't be read safely"):
            convert(tmp_path / name)
    target = tmp_path / "written"
    assert "can't be read safely" in fails({"state_dict": state, "extra": Malicious(target)}, tmp_path / "evil.pth")
    assert not target.exists()
    assert "holds no state dict" in fails([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in fails({"model": {"a": 1}}, tmp_path / "values.pth")
    assert "no known dialect: its keys (a," in fails({"a": torch.zeros(1)}, tmp_path / "other.pth")


def test_models_that_do_not_fit_are_named_by_their_keys(small_file: tuple[Path, State], tmp_path: Path) -> None:
    _, state = small_file
    said = fails({**state, "roi_heads.box.weight": torch.zeros(1)}, tmp_path / "a.pth")
    assert "1 keys have no meaning there (roi_heads.box.weight)" in said
    left_out = {k: v for k, v in state.items() if "inner_blocks.1" not in k}
    assert "2 missing (pyramid.lateral.1.weight, pyramid.lateral.1.bias)" in fails(left_out, tmp_path / "b.pth")
    shape = {**state, "head.regression_head.bbox_reg.weight": torch.zeros(8, 256, 3, 3)}
    assert "1 of another shape (head.box_regression.weight)" in fails(shape, tmp_path / "c.pth")
    thin = {k: v for k, v in state.items() if "layer3.5" not in k}
    assert "its backbone is none of ResNet-50" in fails(thin, tmp_path / "d.pth")
    headless = {k: v for k, v in state.items() if "cls_logits" not in k}
    assert "no class convolution" in fails(headless, tmp_path / "e.pth")
    assert "is not mmdetection's ATSS" in fails(state, tmp_path / "f.pth", "mm_atss")
    assert "no dialect 'mm_ats', did you mean mm_atss?" in fails(state, tmp_path / "g.pth", "mm_ats")


def test_the_command_tells_what_it_found(
    small_file: tuple[Path, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ours.pt"
    monkeypatch.setattr("sys.argv", ["train.pretrained", str(small_file[0]), "-o", str(out)])
    pretrained.main()
    assert "torchvision's fcos_resnet50_fpn (tv_fcos): resnet50, 2 classes, NMS at 0.6" in capsys.readouterr().out
    assert load_detector(out).classes.names == ("class 0", "class 1")
    monkeypatch.setattr("sys.argv", ["train.pretrained", str(out), "-o", str(out)])
    with pytest.raises(UserError, match="this run reads that file"):
        pretrained.main()


def test_prefixes_and_wrappers_are_seen_through(small_file: tuple[Path, State], tmp_path: Path) -> None:
    path, state = small_file
    wrapped = {"model": {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}}
    torch.save({**wrapped, "iteration": 90000}, tmp_path / "wrapped.pth")
    plain, found = convert(path), convert(tmp_path / "wrapped.pth")
    assert found.config == plain.config
    for key, value in plain.state.items():
        torch.testing.assert_close(found.state[key], value.half().float() if value.is_floating_point() else value)


def test_fine_tuning_with_other_classes_begins_with_the_weights(
    small_file: tuple[Path, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ours.pt"
    monkeypatch.setattr("sys.argv", ["train.pretrained", str(small_file[0]), "-o", str(out)])
    pretrained.main()
    config, _ = parse([str(out), "--out", str(tmp_path / "run")])
    assert config.run.init == str(out)
    assert config.model == load_detector(out).config.model
    start = load_detector(out).detector.state_dict()
    for classes in (2, 5):
        detector = build_detector(config.model, classes, config.preprocess)
        initialize_from(detector, out)
        for key, value in detector.state_dict().items():
            if not key.startswith("head.class_logits.") or classes == 2:
                assert torch.equal(value, start[key]), key
    other = build_detector(replace(config.model, pyramid=Pyramid(channels=64)), 2, config.preprocess)
    with pytest.raises(CheckpointError, match="don't fit"):
        initialize_from(other, out)


def test_a_network_with_deformable_layers_is_recognised(tmp_path: Path, shared_dir: Path) -> None:
    """The authors' naming of DCNv2: `conv2.conv`, `conv2.offset`, and the towers' last convolution likewise."""
    state = published(shared_dir / "goldens", "off_atss_r50")
    for key in [k for k in state if ".conv2.weight" in k and "layer1" not in k]:
        weight = state.pop(key)
        base = key.removesuffix(".weight")
        state |= {f"{base}.conv.weight": weight, f"{base}.offset.bias": torch.zeros(27)}
        state[f"{base}.offset.weight"] = torch.zeros(27, weight.shape[1], 3, 3)
    for tower in ("cls_tower", "bbox_tower"):
        base = f"rpn.head.{tower}.9"
        state |= {f"{base}.conv.{part}": state.pop(f"{base}.{part}") for part in ("weight", "bias")}
        state |= {f"{base}.offset.weight": torch.zeros(27, 256, 3, 3), f"{base}.offset.bias": torch.zeros(27)}
    del state["rpn.head.bbox_tower.9.conv.bias"]  # where there is none, zeros stand in
    torch.save({"model": state}, tmp_path / "dcn.pth")
    found = convert(tmp_path / "dcn.pth")
    assert (found.state["head.box_tower.9.bias"] == 0).all()
    model = found.config.model
    assert model.backbone.deformable_stages == (3, 4, 5)
    assert model.head.deformable
