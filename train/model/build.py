"""Builds the network that a configuration describes: the one module of this room that reads the configuration."""

from __future__ import annotations

from dataclasses import replace

from runtime.manifest import Preprocess

from .. import config
from ..geometry.anchors import anchors_per_cell
from .backbones import build_backbone, norms_to_freeze
from .detector import DetectorNetwork
from .fpn import FeaturePyramid
from .head import Head


def build_detector(model: config.Model, num_classes: int, pre: Preprocess) -> DetectorNetwork:
    """The detector that a configuration describes, its backbone's weights loaded."""
    backbone = build_backbone(model.backbone)
    pyramid = FeaturePyramid(
        backbone.channels,
        model.pyramid.channels,
        model.pyramid.levels,
        model.pyramid.extra_from,
        model.pyramid.extra_relu,
    )
    head = Head(
        channels=model.pyramid.channels,
        num_classes=num_classes,
        levels=model.pyramid.levels,
        convolutions=model.head.convolutions,
        group_norm_groups=model.head.group_norm_groups,
        prior=model.head.prior_probability,
        anchors=anchors_per_cell(model.anchors),
        centerness=model.head.centerness,
        level_scales=model.head.level_scales,
        tower_bias=model.head.tower_bias,
        deformable=model.head.deformable,
    )
    return DetectorNetwork(backbone, pyramid, head, pre, norms_to_freeze(backbone, model.backbone))


def without_weights(model: config.Model) -> config.Model:
    """The same model, built with random weights: for a checkpoint that brings its own."""
    return replace(model, backbone=replace(model.backbone, weights="none"))
