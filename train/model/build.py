"""Builds the network that a configuration describes: the one module of this room that reads the configuration."""

from __future__ import annotations

from dataclasses import replace

from runtime.manifest import Preprocess, Thresholds

from .. import config
from ..geometry.anchors import anchors_per_cell
from .backbones import build_backbone, entry_of, missing_settings, norms_to_freeze
from .detector import DetectorNetwork
from .fpn import FeaturePyramid
from .head import Head
from .postprocess import Postprocess


def build_detector(model: config.Model, num_classes: int, pre: Preprocess) -> DetectorNetwork:
    """The detector of a configuration, with the weights of its backbone loaded.

    Raises UserError for settings that the backbone doesn't have, WeightsError for weights that can't be had.
    """
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
    """The same model with a randomly initialised backbone: for a checkpoint, which brings its own weights.

    Settings that the backbone doesn't have become neutral: earlier versions ignored them, and wrote them down.
    """
    backbone = replace(model.backbone, weights="none", **missing_settings(model.backbone))
    stages = min(backbone.frozen_stages, entry_of(backbone).stages)
    return replace(model, backbone=replace(backbone, frozen_stages=stages))


def build_postprocess(model: config.Model, thresholds: Thresholds) -> Postprocess:
    """The parameters of a model's postprocessing."""
    return Postprocess(model.anchors, model.regression, model.scoring, thresholds)
