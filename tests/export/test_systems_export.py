"""Every way to compute a box and a score is exported, and the file gives the checkpoint's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.verification.checkpoint import verify_export
from export.verification.checks import DETECTIONS
from export.verification.images import synthetic_images
from runtime.manifest import Preprocess, Thresholds
from train.checkpoint import LoadedDetector
from train.config.paper_recipes import SYSTEMS
from train.pretrained import dialects

from ..support.systems import narrowed, saved


def check_export(loaded: LoadedDetector, path: Path) -> None:
    path.write_bytes(checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 3)))
    check(loaded, path)


def check(loaded: LoadedDetector, path: Path) -> None:
    checks = verify_export(loaded, path, synthetic_images())
    assert [c for c in checks if not c.passed] == []
    assert sum(c.compared for c in checks if c.quantity == DETECTIONS) > 50
    assert any("centerness" in c.quantity for c in checks) == (loaded.config.model.head.centerness != "none")


# These two files have every kind between them; `slow` has each by itself.


def test_nine_anchors_on_a_canvas_divided_by_cells_without_centerness(tmp_path: Path) -> None:
    """Five levels: the sides of the second batch's canvas are no multiples of the coarsest stride."""
    model = narrowed(dialects.TV_RETINANET.model)
    pre = Preprocess(short_side=96, long_side=128)
    loaded = saved(model, dialects.TV_RETINANET.thresholds, pre, tmp_path / "ours.pt")
    check_export(loaded, tmp_path / "model.onnx")
    assert b"GridSample" not in (tmp_path / "model.onnx").read_bytes()


def test_deformable_points_ranked_by_class_with_legacy_boxes(deformable: tuple[LoadedDetector, Path]) -> None:
    check(*deformable)
    assert b"GridSample" in deformable[1].read_bytes()


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
