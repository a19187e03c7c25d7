"""Schedules, parameter groups, averaged weights and clipping against their formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from runtime.coco import load_coco
from train.build import build_criterion, build_detector, build_training_batches
from train.config import Config, Schedule
from train.config.recipes import atss_r50_fpn_1x
from train.model.detector import DetectorNetwork
from train.trainer.backward import backward
from train.trainer.optim import (
    AveragedWeights,
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    resume_optimizer,
    set_learning_rate,
)

Make = Callable[..., Config]


def build(settings: Config) -> DetectorNetwork:
    torch.manual_seed(0)
    return build_detector(settings.model, 3, settings.preprocess)


def test_the_papers_schedule() -> None:
    schedule = atss_r50_fpn_1x().schedule
    assert (schedule.steps, schedule.batch, schedule.learning_rate) == (90_000, 16, 0.01)
    assert (schedule.optimizer, schedule.momentum, schedule.weight_decay) == ("sgd", 0.9, 1e-4)
    for step, factor in ((500, 1), (59_999, 1), (60_000, 0.1), (79_999, 0.1), (80_000, 0.01), (89_999, 0.01)):
        assert learning_rate_factor(step, schedule) == pytest.approx(factor), step


def test_warm_up_is_linear_from_its_start() -> None:
    schedule = Schedule(warmup_steps=500, warmup_start=0.001)
    found = [learning_rate_factor(step, schedule) for step in range(502)]
    assert found[0] == 0.001
    assert found[250] == pytest.approx((0.001 + 1) / 2)
    assert found[500] == found[501] == 1
    assert torch.tensor(found[:501]).double().diff().std() < 1e-7


def test_half_a_cosine_ends_near_0() -> None:
    schedule = Schedule(steps=1000, decay="cosine", warmup_steps=100)
    assert learning_rate_factor(100, schedule) == 1
    assert learning_rate_factor(550, schedule) == pytest.approx(0.5)
    assert learning_rate_factor(325, schedule) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert 0 < learning_rate_factor(999, schedule) < 1e-5
    assert learning_rate_factor(0, Schedule(steps=10, warmup_steps=0, decay="cosine")) == 1
    assert learning_rate_factor(5, Schedule(steps=5, warmup_steps=5, decay="cosine")) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_groups_hold_every_trainable_parameter_once(optimizer: str, small_config: Make) -> None:
    settings = small_config(optimizer=optimizer, backbone_factor=0.3, learning_rate=0.5, weight_decay=0.07)
    backbone = replace(settings.model.backbone, frozen_stages=2)
    model = build(replace(settings, model=replace(settings.model, backbone=backbone)))
    built = build_optimizer(model, settings.schedule)
    group_of = {id(p): g for g in built.param_groups for p in g["params"]}
    assert len(group_of) == sum(len(g["params"]) for g in built.param_groups)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trainable.values()} == set(group_of)
    assert 0 < len(trainable) < len(list(model.parameters()))
    for name, parameter in trainable.items():
        group = group_of[id(parameter)]
        assert group["lr"] == group["base_lr"] == pytest.approx(0.15 if name.startswith("backbone.") else 0.5), name
        plain = name.endswith("bias") or "bn" in name or ("tower" in name and parameter.ndim == 1) or "scales" in name
        assert group["weight_decay"] == (0 if plain or parameter.ndim == 1 else 0.07), name


def test_setting_the_rate_scales_every_group(small_config: Make) -> None:
    settings = small_config(backbone_factor=0.5, learning_rate=0.2)
    built = build_optimizer(build(settings), settings.schedule)
    for factor in (0.1, 1.0, 0.5):
        set_learning_rate(built, factor)
        assert {round(g["lr"], 9) for g in built.param_groups} == {round(0.2 * factor, 9), round(0.1 * factor, 9)}


def test_the_average_follows_its_formula_with_buffers(small_config: Make) -> None:
    model = build(small_config())
    average = AveragedWeights(model, 0.7)
    expected = {k: v.double() for k, v in model.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor += 1 if not tensor.is_floating_point() else torch.rand_like(tensor)
        average.update(model, step)
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            counter = not value.is_floating_point()
            expected[name] = value.double() if counter else decay * expected[name] + (1 - decay) * value.double()
    found = average.model.state_dict()
    assert any("running_mean" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, atol=1e-5, rtol=1e-5)


def test_the_average_is_a_model_of_its_own(small_config: Make) -> None:
    model = build(small_config())
    average = AveragedWeights(model, 0.9)
    before = copy.deepcopy(average.model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert all(torch.equal(v, before[k]) for k, v in average.model.state_dict().items())
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training


def test_clipping() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    for maximum, expected in ((0.0, [3.0, 0.0, 4.0]), (10.0, [3.0, 0.0, 4.0]), (1.0, [0.6, 0.0, 0.8])):
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        assert clip_gradients(parameters, maximum).item() == pytest.approx(5)
        found = torch.cat([p.grad for p in parameters])
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def step_alike(settings: Config, *pairs: tuple[DetectorNetwork, torch.optim.Optimizer]) -> None:
    """Steps of several optimizers on the first model's gradients, so that nothing but the optimizers differs."""
    data = load_coco(settings.data.train_json, settings.data.train_images)
    criterion, scaler = build_criterion(settings.model), torch.amp.GradScaler("cpu", enabled=False)
    (leader, _), *others = pairs
    for batch in build_training_batches(data, settings, 0):
        leader.zero_grad()
        targets = batch.targets._replace(labels=batch.targets.labels % 3)
        backward(leader, criterion, batch.images, targets, 1, torch.float32, scaler)
        for model, _ in others:
            for parameter, source in zip(model.parameters(), leader.parameters(), strict=True):
                parameter.grad = None if source.grad is None else torch.empty_like(parameter).copy_(source.grad)
        for _, optimizer in pairs:
            optimizer.step()


def plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, which no longer is fused."""
    assert all(group["fused"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["fused"] = None
    return optimizer


def largest_difference(a: DetectorNetwork, b: DetectorNetwork) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((x.detach() - y.detach()).abs().max().item() for x, y in pairs)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fused_steps_are_those_of_the_plain_optimizer(optimizer: str, small_config: Make) -> None:
    settings = small_config(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1, steps=6)
    ours, theirs = (build(settings).to(memory_format=torch.channels_last) for _ in range(2))
    step_alike(
        settings,
        (ours, build_optimizer(ours, settings.schedule)),
        (theirs, plain(build_optimizer(theirs, settings.schedule))),
    )
    assert largest_difference(ours, theirs) < 1e-6
    assert largest_difference(ours, build(settings)) > 1e-3, "they did move"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_state_of_a_plain_optimizer_in_another_layout_is_continued(
    layout: torch.memory_format, optimizer: str, small_config: Make
) -> None:
    """As in checkpoints of versions before the fused optimizer, and where `run.channels_last` was changed."""
    settings = small_config(optimizer=optimizer, learning_rate=1e-2, steps=4)
    before = build(settings).to(memory_format=torch.channels_last)
    saved = plain(build_optimizer(before, settings.schedule))
    step_alike(settings, (before, saved))
    ours, theirs = (copy.deepcopy(before).to(memory_format=layout) for _ in range(2))
    continued, expected = (build_optimizer(model, settings.schedule) for model in (ours, theirs))
    for optimizer_of_one in (continued, expected):
        resume_optimizer(optimizer_of_one, copy.deepcopy(saved.state_dict()))
    assert all(group["fused"] for group in continued.param_groups)
    step_alike(settings, (ours, continued), (theirs, plain(expected)))
    assert largest_difference(ours, theirs) < 1e-6
    assert largest_difference(ours, before) > 1e-3, "they did move"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_scaler_of_fp16_skips_a_fused_step_with_an_infinite_gradient(optimizer: str, small_config: Make) -> None:
    settings = small_config(optimizer=optimizer, learning_rate=1e-3)
    model = build(settings)
    built = build_optimizer(model, settings.schedule)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    start = copy.deepcopy(model)
    for scaled_by in (1.0, math.inf, 2.0):
        built.zero_grad()
        scaler.scale(sum(p.square().sum() for p in model.parameters() if p.requires_grad) * scaled_by).backward()
        scaler.unscale_(built)
        clip_gradients([p for p in model.parameters() if p.requires_grad], 1.0)
        before = copy.deepcopy(model)
        scaler.step(built)
        scaler.update()
        moved = largest_difference(before, model)
        assert (moved == 0) == (scaled_by == math.inf)
    assert largest_difference(start, model) < 0.05, "the scale of the loss is taken out"
