"""A training step on a GPU, run without one: every tensor lies there, and the host waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from runtime.coco import load_coco
from tests.support.fake_gpu import FAKE_GPU, HostWait, HostWaits, fake_gpu, to_fake_gpu
from train.build import (
    build_criterion,
    build_detector,
    build_postprocess,
    build_training_batches,
    without_weights,
)
from train.config import Config
from train.config.recipes import RECIPES
from train.data.loader import TrainBatch
from train.geometry.anchors import anchors_per_cell
from train.loss.criterion import Losses, Targets
from train.model.detector import DetectorNetwork
from train.model.postprocess import select_candidates
from train.trainer import loop, optim
from train.trainer.backward import backward
from train.trainer.loop import train_detector
from train.trainer.start import State

IMAGES, BOXES = 2, 3
CANVAS = (96, 128)


def parts(config: Config) -> tuple[Any, ...]:
    """What decides which operations a step has."""
    model = config.model
    rule, backbone = model.assignment, model.backbone
    family = "resnet" if backbone.name.startswith("res") else "timm"
    several = anchors_per_cell(model.anchors) > 1
    return (
        (rule.method, rule.center_sampling, model.regression, model.loss.box, several),
        (model.head.centerness, model.head.deformable, model.head.level_scales, model.scoring),
        (family, backbone.batch_norm, bool(backbone.deformable_stages), config.schedule.optimizer),
    )


def cases() -> dict[str, Config]:
    """The first recipe with each combination of parts, on a small ResNet in the place of a large one."""
    found: dict[tuple[Any, ...], tuple[str, Config]] = {}
    for name, recipe in RECIPES.items():
        config = recipe()
        backbone = config.model.backbone
        if backbone.name.startswith("res"):
            backbone = replace(backbone, name="resnet50" if backbone.deformable_stages else "resnet18")
            config = replace(config, model=replace(config.model, backbone=backbone))
        found.setdefault(parts(config), (name, config))
    return dict(found.values())


def on_no_device(config: Config, classes: int = 5) -> tuple[DetectorNetwork, optim.AveragedWeights]:
    """A model and its average, without memory."""
    with torch.device("meta"):
        model = build_detector(without_weights(config.model), classes, config.preprocess)
    if config.run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, optim.AveragedWeights(model, 0.9)


class Step:
    """A model and what its training needs, on the GPU that there is not; made in `fake_gpu`."""

    def __init__(self, config: Config, model: DetectorNetwork, average: optim.AveragedWeights) -> None:
        self.model, self.average, self.schedule = model, average, config.schedule
        for module in (model, average.model):
            to_fake_gpu(module)
        self.criterion = build_criterion(config.model)
        self.postprocess = build_postprocess(config.model, config.thresholds)
        self.optimizer = optim.build_optimizer(self.model, config.schedule)
        self.scaler = torch.amp.GradScaler("cuda")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def train(self, number: int) -> Losses:
        """Step number `number` of a run, as the training loop takes it, in fp16 and in pieces."""
        self.model.train()
        optim.set_learning_rate(self.optimizer, optim.learning_rate_factor(number, self.schedule))
        images = torch.zeros((IMAGES, *CANVAS, 3), dtype=torch.uint8, device=FAKE_GPU)
        boxes, regions = (torch.zeros(IMAGES, count, 4, device=FAKE_GPU) for count in (BOXES, 2))
        labels, mask = (torch.zeros(IMAGES, BOXES, dtype=kind, device=FAKE_GPU) for kind in (torch.int64, torch.bool))
        self.optimizer.zero_grad(set_to_none=True)
        losses = backward(
            self.model,
            self.criterion,
            images,
            Targets(boxes, labels, mask),
            2,
            torch.float16,
            self.scaler,
            regions=regions,
        )
        self.scaler.unscale_(self.optimizer)
        optim.clip_gradients(self.parameters, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.model, number)
        return losses

    def candidates(self) -> tuple[Tensor, ...]:
        """The candidates for NMS that an evaluation finds with the averaged weights."""
        sizes = torch.zeros(IMAGES, 2, dtype=torch.int32, device=FAKE_GPU)
        images = torch.zeros((IMAGES, *CANVAS, 3), dtype=torch.uint8, device=FAKE_GPU)
        with torch.inference_mode():
            return select_candidates(self.average.model(images), sizes, self.postprocess)

    def gradients(self, *_: object, **__: object) -> None:
        """Stands in for the backward pass: autograd asks the GPU's driver for a stream."""
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_a_step_stays_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CASES[name]
    model, average = on_no_device(config)
    with fake_gpu():
        step = Step(config, model, average)
        monkeypatch.setattr(Tensor, "backward", step.gradients)
        with HostWaits():
            made = [*step.train(0), *step.candidates()]
        assert {tensor.device for tensor in made} == {FAKE_GPU}


@pytest.mark.parametrize("crop", [(64, 64), (0, 0)])
def test_the_training_loop_waits_for_nothing_between_two_looks_at_the_loss(
    crop: tuple[int, int], small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(steps=100, batch=4, clip_norm=1.0, optimizer="adamw")
    config = replace(
        config,
        augment=replace(config.augment, crop=crop, mosaic=0.5),
        run=replace(config.run, accumulate=2, log=(), log_every=100, checkpoint_every=100),
    )
    model, average = on_no_device(config, 3)
    dataset = load_coco(config.data.train_json, config.data.train_images)
    batches = list(islice(build_training_batches(dataset, config, 0), 3))

    def without_numbers(*_: object) -> Iterator[TrainBatch]:
        for batch in batches:  # after which the run ends, before a loss is read
            yield tree_map_only(Tensor, lambda real: torch.empty(real.shape, dtype=real.dtype), batch)

    def state(*_: object) -> State:
        step = Step(config, model, average)
        monkeypatch.setattr(Tensor, "backward", step.gradients)
        return State(model, average, step.optimizer, step.scaler, 0, -1.0, 0)

    monkeypatch.setattr(loop, "start_or_resume", state)
    monkeypatch.setattr(loop, "pick_device", lambda name: FAKE_GPU)
    monkeypatch.setattr(loop, "pick_precision", lambda config: torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "none")
    with fake_gpu(), HostWaits():
        assert train_detector(config, tmp_path, make_batches=without_numbers).steps == len(batches)
    assert {p.grad.device for p in model.parameters() if p.grad is not None} == {FAKE_GPU}


# What each gate must catch.
FAULTS: dict[str, Callable[[Tensor], object]] = {
    "a host tensor": lambda x: x + torch.zeros(3),
    "a number on the host": lambda x: x.sum().item(),
    "a branch": lambda x: x if (x > 0).any() else -x,
    "a mask as index": lambda x: x[x > 0],
    "host numbers as index": lambda x: x[torch.tensor([0, 1])],
    "a list as index": lambda x: x[[0, 1]],
    "a constant": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "a tensor of the same kind": lambda x: x.new_tensor([1.0, 2.0]),
    "a copy to the host": lambda x: x.cpu(),
    "a copy to the host that nobody waits for": lambda x: x.to("cpu", non_blocking=True),
    "a copy to the device": lambda x: torch.zeros(2).to(x.device),
    "an assignment": lambda x: x.__setitem__(slice(0, 2), torch.zeros(2)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gates_catch(fault: str) -> None:
    with fake_gpu(), HostWaits():
        x = torch.zeros(3, device=FAKE_GPU)
        assert (x * torch.tensor(2.0)).device == FAKE_GPU  # a number that goes along with the kernel
        assert torch.zeros(2).to(FAKE_GPU, non_blocking=True).device == FAKE_GPU
        with pytest.raises((HostWait, RuntimeError)):
            FAULTS[fault](x)
