"""Losses beside the CPU's, and waits of the host for the device, for a criterion with each assigner."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.alternation import synchronize
from benchmarks.gpu.step import Record
from benchmarks.step_benchmark import CLASSES, PRECISIONS, Step, random_batch, tf32
from train import config
from train.assign import Assignment
from train.build import build_criterion, build_detector
from train.config.recipes import RECIPES
from train.geometry.anchors import anchors_per_cell, pyramid_levels
from train.loss.criterion import Losses
from train.model.detector import DenseOutputs

CPU = torch.device("cpu")
ATSS = RECIPES["atss_r50_fpn_1x"]().model
# A criterion with each assigner.
CRITERIA = {
    "atss": ATSS,
    "topk": replace(ATSS, assignment=Assignment(method="topk")),
    "max_iou (RetinaNet)": RECIPES["retinanet_r50_fpn_1x"]().model,
    "fcos": RECIPES["fcos_r50_fpn_1x"]().model,
    "fcos, radius": replace(ATSS, assignment=Assignment(method="fcos", center_sampling="radius")),
    "fcos, nearest": replace(ATSS, assignment=Assignment(method="fcos", center_sampling="nearest")),
}
FLOAT32_LIMIT = 1e-3  # relative; what sums in another order do is a hundredth of it


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of the difference of two lists of tensors, relative to that of the second."""
    pairs = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(found, expected, strict=True)]
    away = sum((a - b).square().sum().item() for a, b in pairs)
    return float((away / max(1e-30, sum(b.square().sum().item() for _, b in pairs))) ** 0.5)


def random_outputs(model: config.Model, batch: int, canvas_hw: tuple[int, int], device: torch.device) -> DenseOutputs:
    """Random outputs of a network with this head, as leaves of a graph; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    levels, kinds = pyramid_levels(canvas_hw, model.pyramid.levels, model.anchors), anchors_per_cell(model.anchors)

    def maps(channels: int) -> list[Tensor]:
        shapes = [(batch, kinds * channels, level.rows, level.columns) for level in levels]
        return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]

    return DenseOutputs(maps(CLASSES), maps(4), maps(1) if model.head.has_centerness else [])


def criterion_numbers(
    model: config.Model, batch: int, canvas_hw: tuple[int, int], device: torch.device
) -> tuple[Losses, list[Tensor]]:
    """The losses of random outputs, and their gradients."""
    _, targets = random_batch(batch, canvas_hw, device)
    outputs = random_outputs(model, batch, canvas_hw, device)
    losses = build_criterion(model)(outputs, targets, canvas_hw)
    return losses, list(torch.autograd.grad(losses.total, [m for maps in outputs for m in maps]))


def network_numbers(precision: str, device: torch.device) -> tuple[Losses, list[Tensor]]:
    """The losses of a small network in a precision of PRECISIONS or in fp64, and the gradients of its parameters."""
    recipe = RECIPES["atss_tiny"]()
    torch.manual_seed(0)
    model = build_detector(recipe.model, CLASSES, recipe.preprocess).to(device).train()
    images, targets = random_batch(2, (192, 256), device)
    if precision == "fp64":
        model, precision = model.double(), "fp32"
    dtype = PRECISIONS[precision].dtype
    with tf32(PRECISIONS[precision].tf32):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            outputs = model(images)
        outputs = DenseOutputs(*([m.float() for m in maps] for maps in outputs))  # the losses are computed in float32
        losses = build_criterion(recipe.model)(outputs, targets, (192, 256))
        gradients = torch.autograd.grad(losses.total, [p for p in model.parameters() if p.requires_grad])
    return losses, list(gradients)


def compare_losses(record: Record, device: torch.device, canvas_hw: tuple[int, int]) -> None:
    """Losses and gradients of the device beside the CPU's, for each criterion and for a whole network.

    The network's reference is the CPU in float64, and only the device's float64 must be equal to it: in float32, batch
    norms amplify what a rounding decides otherwise at a maximum, on a CPU as well (0.6 % of the gradients, measured).
    """
    table = "losses against the CPU's"
    parts: dict[tuple[str, str], Callable[[torch.device], tuple[Losses, list[Tensor]]]] = {
        (f"criterion, {name}", "fp32"): partial(criterion_numbers, model, 2, canvas_hw)
        for name, model in CRITERIA.items()
    }
    for precision in ("fp64", "fp32") if device.type == "cpu" else ("fp64", "fp32", "tf32", "bf16"):
        parts["small network", precision] = partial(network_numbers_in, precision)
    for (name, precision), numbers in parts.items():
        if record.has(table, part=name, precision=precision):
            continue
        with record.part(f"{table}: {name}, {precision}"):
            (losses, gradients), (expected, wanted) = numbers(device), numbers(CPU)
            away, steeper = relative([losses.total], [expected.total]), relative(gradients, wanted)
            record.row(
                table,
                part=name,
                precision=precision,
                loss=losses.total.item(),
                loss_of_the_cpu=expected.total.item(),
                relative_difference=away,
                relative_difference_of_gradients=steeper,
            )
            is_exact = precision == "fp64" or name != "small network"
            if is_exact and not max(away, steeper) < FLOAT32_LIMIT:
                record.fail(f"{table}: {name}, {precision}", f"differ by {away:.2g}, gradients by {steeper:.2g}")


def network_numbers_in(precision: str, device: torch.device) -> tuple[Losses, list[Tensor]]:
    """`network_numbers`; the CPU is the reference and always computes in float64."""
    return network_numbers("fp64" if device == CPU else precision, device)


def wait_of(function: Callable[[], Any], device: torch.device) -> str:
    """Whether the host waits for the device in a call: "no", or where.

    A first call isn't looked at, since it may load kernels.
    """
    function()
    synchronize(device)
    if device.type != "cuda":
        return "can't be seen without a GPU"
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError as error:
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
        return f"{str(error).splitlines()[0]} ({' > '.join(places)})"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no"


def look_for_waits(
    record: Record, device: torch.device, canvas_hw: tuple[int, int], steps: Mapping[str, Callable[[], Step]]
) -> None:
    """Whether the host waits for the device in assignments, criteria and whole steps."""
    table = "waits of the host"
    _, targets = random_batch(2, canvas_hw, device)
    for name, model in CRITERIA.items():
        if record.has(table, of=name):
            continue
        with record.part(f"{table}: {name}"):
            criterion = build_criterion(model)
            outputs = random_outputs(model, 2, canvas_hw, device)
            assigned = criterion.assign(targets, canvas_hw)
            in_assignment = wait_of(partial(criterion.assign, targets, canvas_hw), device)
            losses = partial(criterion, outputs, targets, canvas_hw, None, assigned)
            in_criterion = wait_of(partial(_forward_and_backward, losses), device)
            record.row(table, of=name, assignment=in_assignment, criterion=in_criterion)
            for where, found in {"assignment": in_assignment, "criterion": in_criterion}.items():
                if device.type == "cuda" and found != "no":
                    record.fail(f"{table}: {name}, {where}", found)
    for name, build in steps.items():
        if record.has(table, of=name):
            continue
        with record.part(f"{table}: {name}"):
            found = wait_of(build(), device)
            record.row(table, of=name, step=found)
            if device.type == "cuda" and found != "no" and "torchvision" not in name:
                record.fail(f"{table}: {name}", found)


def _forward_and_backward(losses: Callable[[], Losses]) -> None:
    losses().total.backward()
