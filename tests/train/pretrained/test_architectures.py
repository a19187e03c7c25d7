"""Every name of the catalogue: a checkpoint of its architecture converts, laid out by hand as its publisher does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models._utils import IntermediateLayerGetter

from train.build import build_detector
from train.checkpoint import load_detector
from train.pretrained import __main__ as pretrained
from train.pretrained.catalogue import CATALOGUE
from train.pretrained.convert import convert
from train.pretrained.dialects import rename

Shapes = dict[str, tuple[int, ...]]
LEVELS, CLASSES, CHANNELS = 5, 80, 256
# By the part of a name: torchvision's network of the same layers, and the name of our backbone.
BACKBONES = {
    "r50": ("resnet50", "resnet50"),
    "r101": ("resnet101", "resnet101"),
    "x101_64x4d": ("resnext101_64x4d", "resnext101_64x4d"),
}
TORCHVISION = {
    "tv_retinanet_r50": "retinanet_resnet50_fpn",
    "tv_retinanet_r50_v2": "retinanet_resnet50_fpn_v2",
    "tv_fcos_r50": "fcos_resnet50_fpn",
}


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def convolution(key: str, out: int, into: int, side: int, bias: bool = True) -> Shapes:
    return {f"{key}.weight": (out, into, side, side), **({f"{key}.bias": (out,)} if bias else {})}


def mmdetections(dialect: str, backbone: str) -> Shapes:
    """The keys and shapes of mmdetection's detectors, as its modules name them."""
    with torch.device("meta"):
        network = getattr(torchvision.models, BACKBONES[backbone][0])(weights=None)
    shapes = {f"backbone.{key}": shape for key, shape in shapes_of(network).items() if not key.startswith("fc.")}
    is_retinanet = dialect == "mm_retinanet"
    for number, channels in enumerate((512, 1024, 2048)):
        shapes |= convolution(f"neck.lateral_convs.{number}.conv", CHANNELS, channels, 1)
    for number in range(LEVELS):  # a RetinaNet's P6 comes from C5
        into = 2048 if is_retinanet and number == 3 else CHANNELS
        shapes |= convolution(f"neck.fpn_convs.{number}.conv", CHANNELS, into, 3)
    for tower in ("cls_convs", "reg_convs"):
        for number in range(4):
            key = f"bbox_head.{tower}.{number}"
            shapes |= convolution(f"{key}.conv", CHANNELS, CHANNELS, 3, bias=is_retinanet)
            if not is_retinanet:
                shapes |= {f"{key}.gn.weight": (CHANNELS,), f"{key}.gn.bias": (CHANNELS,)}
    prefix = {"mm_atss": "atss", "mm_fcos": "conv", "mm_retinanet": "retina"}[dialect]
    anchors = 9 if is_retinanet else 1
    shapes |= convolution(f"bbox_head.{prefix}_cls", anchors * CLASSES, CHANNELS, 3)
    shapes |= convolution(f"bbox_head.{prefix}_reg", anchors * 4, CHANNELS, 3)
    if not is_retinanet:
        shapes |= convolution(f"bbox_head.{prefix}_centerness", 1, CHANNELS, 3)
        shapes |= {f"bbox_head.scales.{level}.scale": () for level in range(LEVELS)}
    return shapes


def backbone_of(name: str) -> str:
    return next(part for part in BACKBONES if f"_{part}" in name)


# The first name of each architecture; other names are longer schedules of one of them.
ARCHITECTURES = {(one.dialect, backbone_of(name)): name for name, one in reversed(CATALOGUE.items())}


def published(name: str) -> Shapes:
    if name in TORCHVISION:
        with torch.device("meta"):
            made = getattr(torchvision.models.detection, TORCHVISION[name])
            return shapes_of(made(weights=None, weights_backbone=None))
    return mmdetections(CATALOGUE[name].dialect, backbone_of(name))


def numbered(shapes: Shapes) -> dict[str, Tensor]:
    """A tensor of each shape, all of whose elements are its number."""
    kinds = {key: torch.long if key.endswith("num_batches_tracked") else torch.float32 for key in shapes}
    return {
        key: torch.full(shape, number, dtype=kinds[key]) for number, (key, shape) in enumerate(shapes.items(), start=1)
    }


def number_of(tensor: Tensor) -> float:
    return tensor.flatten()[0].item()


@pytest.mark.parametrize("name", ["mm_atss_r50", "mm_retinanet_r50", "mm_fcos_r50"])
def test_the_layout_by_hand_is_the_publishers(name: str, shared_dir: Path) -> None:
    """The keys and shapes of models that mmdetection itself made."""
    keys = json.loads((shared_dir / "goldens" / f"{name}.json").read_text())["keys"]
    assert {key: tuple(shape) for key, shape in keys.items()} == published(name)


def test_each_name_is_of_an_architecture() -> None:
    assert len(CATALOGUE) == 18
    assert len(ARCHITECTURES) == 10
    for name, one in CATALOGUE.items():
        shortest = ARCHITECTURES[one.dialect, backbone_of(name)]
        assert name.removesuffix("_2x").removesuffix("_3x") == shortest
        assert {"r50": "r50", "r101": "r101", "x101_64x4d": "x101"}[backbone_of(name)] in one.file.replace(
            "resnet", "r"
        )


@pytest.mark.parametrize("name", ARCHITECTURES.values())
def test_a_checkpoint_of_each_architecture_converts_and_builds(name: str, tmp_path: Path) -> None:
    theirs = numbered(published(name))
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs} if name.startswith("mm_") else theirs, tmp_path / "a.pth")
    found = convert(tmp_path / "a.pth")
    (tmp_path / "a.pth").unlink()
    model = found.config.model
    assert found.dialect.name == CATALOGUE[name].dialect
    assert model.backbone.name == BACKBONES[backbone_of(name)][1]
    assert model.backbone.bottleneck_stride == ("1x1" if name.startswith("mm_fcos") else "3x3")
    assert (model.head.group_norm_groups > 0) == name.startswith(
        ("mm_atss", "mm_fcos", "tv_retinanet_r50_v2", "tv_fcos")
    )
    assert len(found.classes.names) == len(set(found.classes.category_ids)) == (91 if name in TORCHVISION else CLASSES)
    with torch.device("meta"):
        network = build_detector(model, len(found.classes.names), found.config.preprocess)
    network.load_state_dict(found.state, strict=True, assign=True)
    # Every tensor of theirs is one of ours, whole, and under the name that the dialect gives it.
    weights = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    arrived = {key: value for key, value in found.state.items() if not key.endswith("num_batches_tracked")}
    for key, value in weights.items():
        if (ours := rename(key, found.dialect)) in arrived:
            assert torch.equal(arrived[ours], value), key
    scales = arrived.pop("head.scales", torch.zeros(0)).tolist()
    assert sorted([*map(number_of, arrived.values()), *scales]) == sorted(map(number_of, weights.values()))
    if scales:
        assert scales == [number_of(theirs[f"bbox_head.scales.{level}.scale"]) for level in range(LEVELS)]
    for end in ("conv1.weight", "layer4.2.conv2.weight", "layer3.5.bn3.running_var"):
        (key,) = (key for key in theirs if key.endswith(f".{end}") and key.count(".") <= end.count(".") + 2)
        assert torch.equal(arrived[f"backbone.{end}"], theirs[key])


@pytest.mark.parametrize("name", ["mm_atss_r101", "mm_retinanet_x101_64x4d"])
def test_the_command_writes_a_large_one_whose_maps_are_torchvisions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights; the backbone's are those of torchvision's network of the same layers."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, BACKBONES[backbone_of(name)][0])(weights=None).eval()
    given = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    state = {key: given.get(key, torch.empty(0)) for key in published(name)}
    state |= {key: 0.02 * torch.randn(shape) for key, shape in published(name).items() if key not in given}
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    monkeypatch.setattr(
        sys, "argv", ["train.pretrained", str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "ours.pt")]
    )
    pretrained.main()
    backbone = BACKBONES[backbone_of(name)][1]
    assert f"({CATALOGUE[name].dialect}): {backbone}, 80 classes" in capsys.readouterr().out
    (tmp_path / "theirs.pth").unlink()
    loaded = load_detector(tmp_path / "ours.pt")
    (tmp_path / "ours.pt").unlink()
    detector = loaded.detector.eval()
    image = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    pixels = torch.randn((1, 3, 64, 96))
    taps = IntermediateLayerGetter(network, {"layer2": "c3", "layer3": "c4", "layer4": "c5"})
    with torch.no_grad():
        found, expected = detector.backbone(pixels), list(taps(pixels).values())
        dense = detector(image)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.std() > 0
    assert len(dense.class_logits) == LEVELS
    assert all(torch.isfinite(level).all() for level in dense.class_logits)
