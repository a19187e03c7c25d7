"""Small detectors of every system, as checkpoints with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from runtime.manifest import Preprocess, Thresholds
from train.build import build_detector
from train.checkpoint import Checkpoint, Classes, LoadedDetector, load_detector, save_checkpoint
from train.config import Backbone, Config, Model

THIN = Backbone("resnet18", weights="none", stem_channels=8)


def narrowed(model: Model, backbone: Backbone = THIN) -> Model:
    """The same system with few channels; nothing that the graph depends on is changed."""
    groups = 4 if model.head.group_norm_groups else 0
    return replace(
        model,
        backbone=backbone,
        pyramid=replace(model.pyramid, channels=16),
        head=replace(model.head, convolutions=1, group_norm_groups=groups, prior_probability=0.2),
    )


def saved(model: Model, thresholds: Thresholds, pre: Preprocess, path: Path) -> LoadedDetector:
    """A checkpoint with random weights whose outputs vary from cell to cell."""
    torch.manual_seed(0)
    settings = Config(recipe="test", preprocess=pre, model=model, thresholds=thresholds)
    detector = build_detector(model, 3, pre)
    for module in (detector.head.class_logits, detector.head.box_regression, detector.head.centerness):
        if module is not None:
            nn.init.normal_(module.weight, std=0.2)
    for name, parameter in detector.named_parameters():
        if ".offset." in name:
            nn.init.normal_(parameter, std=0.05)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, Checkpoint(settings, Classes(("a", "b", "c"), (1, 2, 7)), 1, detector.state_dict(), None, {}, {}, None, -1.0))  # fmt: skip  # noqa: E501
    return load_detector(path)
