"""Every way to compute a box and a score is exported, and the file gives the checkpoint's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from export.pictures import synthetic_pictures
from export.to_onnx import export_model, input_shapes
from export.verify import DETECTIONS, verify
from runtime.manifest import Preprocess, Thresholds
from train import dialects
from train.checkpoint import Checkpoint, Classes, LoadedDetector, load_detector, save_checkpoint
from train.config import Backbone, Config, Model
from train.detector import build_detector
from train.systems import SYSTEMS

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


def check_export(loaded: LoadedDetector, path: Path) -> None:
    pre = loaded.config.preprocess
    path.write_bytes(export_model(loaded, input_shapes(pre, 3)))
    checks = verify(loaded, path, synthetic_pictures())
    assert [c for c in checks if not c.passed] == []
    assert sum(c.compared for c in checks if c.quantity == DETECTIONS) > 50
    assert any("centerness" in c.quantity for c in checks) == (loaded.config.model.head.centerness != "none")


def point_with_everything() -> Model:
    """Points, centerness from the class tower, ranked by class, deformable towers."""
    model = narrowed(dialects.MM_FCOS.model)
    return replace(model, head=replace(model.head, deformable=True))


# Two files that have every kind between them; `slow` has each by itself.
KINDS = {
    "9 anchors on a canvas divided by cells, no centerness": (
        narrowed(dialects.TV_RETINANET.model),
        dialects.TV_RETINANET.thresholds,
    ),
    "points, class rank, deformable, legacy + 1": (point_with_everything(), dialects.AUTHORS_ATSS.thresholds),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_box_and_score(kind: str, tmp_path: Path) -> None:
    model, thresholds = KINDS[kind]
    model = replace(model, pyramid=replace(model.pyramid, levels=4))
    loaded = saved(model, thresholds, Preprocess(short_side=96, long_side=128), tmp_path / "ours.pt")
    check_export(loaded, tmp_path / "model.onnx")
    assert (b"GridSample" in (tmp_path / "model.onnx").read_bytes()) == model.head.deformable


@pytest.mark.slow
def test_a_deformable_recipe(tmp_path: Path) -> None:
    """DCNv2 in c3-c5 and the towers: torchvision's operator in the checkpoint, GridSample in the file."""
    recipe = SYSTEMS["atss_dcn_r50_fpn_1x"]()
    model = narrowed(recipe.model, replace(recipe.model.backbone, weights="none", batch_norm="train"))
    loaded = saved(model, Thresholds(), Preprocess(short_side=96, long_side=128), tmp_path / "ours.pt")
    check_export(loaded, tmp_path / "model.onnx")
    assert b"GridSample" in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dialect", dialects.DIALECTS, ids=[d.name for d in dialects.DIALECTS])
def test_every_dialect(dialect: dialects.Dialect, tmp_path: Path) -> None:
    pre = replace(dialect.preprocess, short_side=96, long_side=128)
    loaded = saved(narrowed(dialect.model), dialect.thresholds, pre, tmp_path / "ours.pt")
    check_export(loaded, tmp_path / "model.onnx")
