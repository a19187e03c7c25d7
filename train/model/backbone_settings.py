"""What belongs to a backbone: the normalisation of its published weights, and which settings it has."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any, NamedTuple

from runtime.errors import UserError
from runtime.names import unknown_name

from ..config import Backbone, BackboneName, Config


class Normalization(NamedTuple):
    """What the published weights of a backbone were trained with, RGB, 0–255; the names are Preprocess's."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad_value: tuple[int, int, int]  # the mean as a colour


class Kind(NamedTuple):
    """What is common to backbones of one make."""

    normalization: Normalization
    reads: frozenset[str]  # the settings that not all backbones have
    stages: int  # that can be frozen, the stem among them


_IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), (124, 116, 104))  # torchvision's
_CENTERED = Normalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), (127, 127, 127))  # timm's tf_efficientnet_lite
_BASIC = Kind(_IMAGENET, frozenset({"stem_channels"}), 5)
_BOTTLENECKS = Kind(_IMAGENET, frozenset({"bottleneck_stride", "deformable_stages"}), 5)
_LITE = Kind(_CENTERED, frozenset(), 8)
_NOT_COMMON = frozenset().union(*(kind.reads for kind in (_BASIC, _BOTTLENECKS, _LITE)))


def kind_of(name: BackboneName) -> Kind:
    """What a backbone of this name brings along. Raises UserError for a name that is none."""
    match name:
        case "resnet18" | "resnet34":
            return _BASIC
        case "resnet50" | "resnet101" | "resnext101_32x8d" | "resnext101_64x4d":
            return _BOTTLENECKS
        case (
            "efficientnet_lite0"
            | "efficientnet_lite1"
            | "efficientnet_lite2"
            | "efficientnet_lite3"
            | "efficientnet_lite4"
        ):
            return _LITE
        case _:
            unknown_name(name, "backbone.name", BackboneName)


def follow_backbone(config: Config, recipe: Config, given: Collection[str]) -> Config:
    """A recipe whose backbone was exchanged, with what belongs to the new one in place of what belonged to the old.

    That is the normalisation where it was the old one's own, and settings that the new one doesn't have. Not those
    that the user has `given`, by their names on the command line.
    """
    old, new = kind_of(recipe.model.backbone.name), kind_of(config.model.backbone.name)
    if config.model.backbone.name == recipe.model.backbone.name:
        return config
    own: dict[str, Any] = {
        name: value
        for name, value in new.normalization._asdict().items()
        if getattr(recipe.preprocess, name) == getattr(old.normalization, name) and f"preprocess.{name}" not in given
    }
    lacking: dict[str, Any] = {
        field.name: field.default
        for field in fields(Backbone)
        if field.name in _NOT_COMMON - new.reads and f"model.backbone.{field.name}" not in given
    }
    backbone = replace(config.model.backbone, **lacking)
    return replace(config, preprocess=replace(config.preprocess, **own), model=replace(config.model, backbone=backbone))


def check_backbone(config: Config) -> None:
    """Raise UserError for a setting that the backbone would ignore, and for the normalisation of another one."""
    backbone, kind = config.model.backbone, kind_of(config.model.backbone.name)
    for field in fields(Backbone):
        value = getattr(backbone, field.name)
        if field.name in _NOT_COMMON - kind.reads and value != field.default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(
                f"--model.backbone.{field.name.replace('_', '-')} {shown}: {backbone.name} has no such setting; "
                "leave it out, or choose a backbone that has it"
            )
    if backbone.frozen_stages > kind.stages:
        raise UserError(
            f"--model.backbone.frozen-stages {backbone.frozen_stages}: {backbone.name} has {kind.stages}, its stem "
            "included; expected at most that"
        )
    pre = config.preprocess
    used = Normalization(pre.mean, pre.std, pre.pad_value)
    for other in (_IMAGENET, _CENTERED):
        foreign = other != kind.normalization and used[:2] == other[:2]
        if backbone.weights == "imagenet" and foreign:
            raise UserError(
                f"--preprocess.mean {_numbers(pre.mean)} --preprocess.std {_numbers(pre.std)}: that is what other "
                f"backbones' weights need; the ImageNet weights of {backbone.name} were trained with "
                f"{_numbers(kind.normalization.mean)} and {_numbers(kind.normalization.std)}"
            )


def _numbers(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:g}" for value in values)
