"""Optimizer, learning-rate schedule and averaged weights.

`OPTIMIZERS` and `DECAYS` hold the choices by name.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import config
from ..model.detector import DetectorNetwork
from ..tables import part_of


def in_steps(schedule: config.Schedule, images: int) -> config.Schedule:
    """The schedule in steps alone: its epochs and repeats are converted for a training set of `images` images."""
    steps = schedule.epochs * images / schedule.batch if schedule.epochs > 0 else schedule.steps
    factor = schedule.repeat * steps / max(1, schedule.steps)
    return dataclasses.replace(
        schedule,
        steps=max(1, round(schedule.steps * factor)),
        milestones=tuple(round(milestone * factor) for milestone in schedule.milestones),
        epochs=0.0,
        repeat=1.0,
    )


OPTIMIZERS: dict[config.Optimizer, Callable[[list[dict[str, Any]], config.Schedule], torch.optim.Optimizer]] = {
    "sgd": lambda groups, schedule: torch.optim.SGD(
        groups, lr=schedule.learning_rate, momentum=schedule.momentum, fused=True
    ),
    "adamw": lambda groups, schedule: torch.optim.AdamW(
        groups, lr=schedule.learning_rate, betas=schedule.betas, fused=True
    ),
}


def build_optimizer(model: DetectorNetwork, schedule: config.Schedule) -> torch.optim.Optimizer:
    """The schedule's optimizer over the trainable parameters; biases, norms and scales have no weight decay.

    It is fused: one kernel reads and writes each parameter once, on a GPU and on a CPU.
    Each parameter group has its learning rate before scaling as `base_lr`; `set_learning_rate` scales it. Raises
    UserError for an unknown optimizer.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    settings = []
    for (in_backbone, decays), parameters in groups.items():
        rate = schedule.learning_rate * (schedule.backbone_factor if in_backbone else 1.0)
        decay = schedule.weight_decay if decays else 0.0
        settings.append({"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay})
    return part_of(OPTIMIZERS, schedule.optimizer, "schedule.optimizer")(settings, schedule)


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the momenta of a saved state and keep the new settings, such as a lower learning rate.

    Raises ValueError where the state has other parameter groups.
    """
    # The new settings are there while loading: whether an optimizer is fused decides where its step counts go.
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [{**saved, **{k: v for k, v in own.items() if k != "params"}} for saved, own in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
    # A fused optimizer walks through memory, so momenta must lie as their parameters do (`run.channels_last`).
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def learning_rate_factor(step: int, schedule: config.Schedule) -> float:
    """The factor of the base learning rate at a step, counted from 0: linear warm-up, then the schedule's decay."""
    decay = part_of(DECAYS, schedule.decay, "schedule.decay")
    if step < schedule.warmup_steps:
        return schedule.warmup_start + (1 - schedule.warmup_start) * step / schedule.warmup_steps
    return decay(step, schedule)


def step_decay(step: int, schedule: config.Schedule) -> float:
    """A tenth after each milestone."""
    return 0.1 ** sum(step >= milestone for milestone in schedule.milestones)


def cosine_decay(step: int, schedule: config.Schedule) -> float:
    """Half a cosine from 1 at the end of the warm-up to 0 after the last step."""
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


# A new one is a name in the configuration's `Decay` (or `Optimizer`), a function, and an entry here.
DECAYS: dict[config.Decay, Callable[[int, config.Schedule], float]] = {"step": step_decay, "cosine": cosine_decay}


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to its base learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class AveragedWeights:
    """Exponential moving average of a model's parameters and buffers; `model` has the averages.

    The decay after t steps is at most (1 + t) / (10 + t), so that the random start doesn't weigh on a short run.
    """

    def __init__(self, model: DetectorNetwork, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: DetectorNetwork, step: int) -> None:
        """Move the average towards the model's weights after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = [], []
        for average, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)


def clip_gradients(parameters: list[nn.Parameter], maximum: float) -> Tensor:
    """Scale the gradients so that their joint norm is at most `maximum` (0: don't); return the norm before."""
    return nn.utils.clip_grad_norm_(parameters, maximum if maximum > 0 else math.inf, foreach=True)
