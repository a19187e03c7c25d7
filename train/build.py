"""Builds network, postprocessing, criterion and training batches: the one module that reads the configuration for them.

The parts take plain arguments and small records of their own; which setting goes where stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from runtime.coco import CocoDataset
from runtime.manifest import Preprocess, Thresholds

from . import config
from .assign import build_assigner
from .data.loader import TrainBatch, TrainingStream, training_batches
from .geometry.anchors import anchors_per_cell
from .loss.criterion import Criterion
from .model.backbones import build_backbone, entry_of, missing_settings, norms_to_freeze
from .model.detector import DetectorNetwork
from .model.fpn import FeaturePyramid
from .model.head import Head
from .model.postprocess import Postprocess


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


def build_criterion(model: config.Model) -> Criterion:
    """The criterion of a model. Raises UserError for an unknown assigner."""
    return Criterion(
        levels=model.pyramid.levels,
        anchors=model.anchors,
        regression=model.regression,
        assigner=build_assigner(model.assignment),
        has_centerness=model.head.has_centerness,
        loss=model.loss,
    )


def build_training_batches(
    dataset: CocoDataset, settings: config.Config, first_step: int, share: int | None = None, rank: int = 0
) -> Iterator[TrainBatch]:
    """The batches of a run from step `first_step` on; see `training_batches` for `share` and `rank`."""
    batch, steps, crop = settings.schedule.batch, settings.schedule.steps, settings.augment.crop
    stream = TrainingStream(
        dataset,
        settings.augment,
        settings.preprocess,
        settings.data.keep_empty,
        seed=settings.run.seed,
        group=batch if settings.data.group_by_aspect and crop == (0, 0) else 0,
        repeat_threshold=settings.data.repeat_threshold,
        mosaic_end=round(settings.augment.mosaic_until * steps) * batch,
    )
    # Pinned memory would take a part of a GPU that such a run leaves to others.
    for_gpu = settings.run.device != "cpu"
    return training_batches(
        stream, range(first_step, steps), batch, settings.data.workers, share=share, rank=rank, for_gpu=for_gpu
    )
