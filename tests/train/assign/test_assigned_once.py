"""Each batch is assigned once, whole, in pieces and in a process among several; its losses don't depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.coco import load_coco
from train.build import build_criterion, build_detector, build_training_batches
from train.config import Assignment, Config
from train.data.loader import TrainBatch
from train.loss.criterion import Criterion, Losses, Targets, rows_of
from train.trainer import backward as module
from train.trainer.distributed import World

from ..loss.test_criterion import CANVAS, MODEL, SCENE, random_outputs, targets_of

Make = Callable[..., Config]
# Of a method that ignores anchors too.
IGNORING = Assignment(method="max_iou", positive_iou=0.3, negative_iou=0.1, center_in_box=False)


@pytest.fixture
def assigned_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the assigner had."""
    counts: list[int] = []
    real = Criterion.assign

    def spy(self: Criterion, targets: Targets, canvas_hw: tuple[int, int]) -> Any:
        counts.append(len(targets.boxes))
        return real(self, targets, canvas_hw)

    monkeypatch.setattr(Criterion, "assign", spy)
    return counts


def step(config: Config, classes: int, batch: TrainBatch, pieces: int, world: World) -> tuple[Losses, list[Tensor]]:
    torch.manual_seed(0)
    model = build_detector(config.model, classes, config.preprocess).train()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = module.backward(
        model, build_criterion(config.model), batch.images, batch.targets, pieces, torch.float32, scaler, world
    )
    return losses, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("rule", [Assignment(), IGNORING], ids=["atss", "max_iou"])
@pytest.mark.parametrize(("pieces", "processes"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_a_batch_is_assigned_once(
    pieces: int,
    processes: int,
    rule: Assignment,
    small_config: Make,
    assigned_images: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(batch=4)
    backbone = replace(config.model.backbone, batch_norm="frozen")
    config = replace(config, model=replace(config.model, backbone=backbone, assignment=rule))
    dataset = load_coco(config.data.train_json, config.data.train_images)
    batch, classes = next(build_training_batches(dataset, config, 0)), len(dataset.classes)
    expected, gradients = step(config, classes, batch, 1, World())
    assert assigned_images == [4]
    assigned_images.clear()
    # Another process with the very same share: the counts are twice these, and the losses stay what they are.
    monkeypatch.setattr(module, "all_reduce", lambda values, world: values * world.size)
    losses, found = step(config, classes, batch, pieces, World(0, processes))
    assert assigned_images == [4]
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [Assignment(), IGNORING], ids=["atss", "max_iou"])
@pytest.mark.parametrize("scene", [[[], []], SCENE], ids=["empty", "mixed"])
def test_an_assignment_that_is_given_is_what_would_be_made(
    scene: list[list[list[float]]], rule: Assignment, assigned_images: list[int]
) -> None:
    criterion = build_criterion(replace(MODEL, assignment=rule))
    targets, outputs = targets_of(scene), random_outputs(len(scene), seed=2)
    assigned = criterion.assign(targets, CANVAS)
    assert (assigned.ignored is not None) == (rule is IGNORING)
    assert torch.equal(
        torch.stack(criterion(outputs, targets, CANVAS, None, assigned)),
        torch.stack(criterion(outputs, targets, CANVAS)),
    )
    assert criterion.normalizers(targets, CANVAS, assigned) == criterion.normalizers(targets, CANVAS)
    assert assigned_images == [len(scene)] * 3
    for i in range(len(scene)):
        alone = criterion.assign(Targets(*(t[i : i + 1] for t in targets)), CANVAS)
        part = rows_of(assigned, slice(i, i + 1))
        assert torch.equal(part.matched, alone.matched)
        assert part.ignored is alone.ignored is None or torch.equal(part.ignored, alone.ignored)
