"""Assignment and criterion never look at a value: they compile as one graph and run on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import TorchDynamoException
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from tests.train.assign.test_assign import random_scene
from train import config
from train.assign import ASSIGNERS, build_assigner
from train.build import build_criterion
from train.geometry.anchors import Level, pyramid_levels
from train.loss.criterion import Targets
from train.model.detector import DenseOutputs

CANVAS = (96, 128)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class LooksAtData(Exception):
    """A graph in which a size or a number depends on values."""


def strict_backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Newer compilers carry data-dependent sizes through a whole graph as unknowns; here they are an error."""
    for node in graph.graph.nodes:
        if free_unbacked_symbols(node.meta.get("example_value")):
            raise LooksAtData(str(node.stack_trace or node))
    return aot_eager(graph, inputs)


def whole_graph(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function as one compiled graph, gradients included; no C++ compiler takes part."""
    return torch.compile(function, fullgraph=True, backend=strict_backend)


# Every assigner and every part of the criterion is in one of these.
MODELS = {
    "atss": config.Model(),
    "retinanet": config.Model(
        head=config.Head(centerness="none"),
        anchors=config.Anchors(4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0)),
        assignment=config.Assignment(method="max_iou"),
        loss=config.Loss(box="smooth_l1"),
    ),
    "fcos": config.Model(
        assignment=config.Assignment(method="fcos"),
        regression=config.Regression(start="point"),
        loss=config.Loss(box="iou"),
    ),
    "fcos_radius": config.Model(assignment=config.Assignment(method="fcos", center_sampling="radius")),
    "fcos_nearest": config.Model(assignment=config.Assignment(method="fcos", center_sampling="nearest")),
    "topk": config.Model(assignment=config.Assignment(method="topk", k_counts="anchors")),
}


def test_every_assigner_is_looked_at() -> None:
    assert {model.assignment.method for model in MODELS.values()} == set(ASSIGNERS)


def levels_of(model: config.Model) -> list[Level]:
    return pyramid_levels(CANVAS, 5, model.anchors)


def assignment(boxes: Tensor, mask: Tensor, model: config.Model) -> Tensor:
    return build_assigner(model.assignment)(boxes, mask, levels_of(model)).matched


def loss(
    logits: Tensor, codes: Tensor, center: Tensor, boxes: Tensor, labels: Tensor, mask: Tensor, model: config.Model
) -> Tensor:
    """The criterion of flat outputs [B, A · channels, cells], cut into levels."""
    levels = levels_of(model)
    sizes = [level.cells for level in levels]

    def maps(flat: Tensor) -> list[Tensor]:
        parts = flat.split(sizes, dim=2)
        return [p.unflatten(2, (v.rows, v.columns)) for p, v in zip(parts, levels, strict=True)]

    outputs = DenseOutputs(maps(logits), maps(codes), [] if model.head.centerness == "none" else maps(center))
    return build_criterion(model)(outputs, Targets(boxes, labels, mask), CANVAS).total


def example(model: config.Model) -> tuple[Tensor, ...]:
    levels = levels_of(model)
    cells = sum(level.cells for level in levels)
    torch.manual_seed(0)
    outputs = [torch.randn(2, len(levels[0].sides) * channels, cells) for channels in (4, 4, 1)]
    boxes = torch.stack([random_scene(CANVAS, 5, seed) for seed in (1, 2)])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return *outputs, boxes, torch.randint(0, 4, (2, 5)), mask


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_constant_is_copied_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, `torch.tensor(numbers, device=…)` waits for the copy; neither gate below can see that on a CPU."""
    arguments = example(MODELS[name])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a constant is copied from the host")

    for made_of_numbers in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, made_of_numbers, refuse)
    assert loss(*arguments, model=MODELS[name]).isfinite()


# Ways of looking at a value while training, each of which the two gates below must catch.
def with_boolean_index(boxes: Tensor, mask: Tensor) -> Tensor:
    return boxes[mask].sum()


def with_item(boxes: Tensor, mask: Tensor) -> Tensor:
    return boxes * mask.sum().item()


def with_nonzero(boxes: Tensor, mask: Tensor) -> Tensor:
    return boxes[0][mask[0].nonzero().squeeze(1)]


def with_branch(boxes: Tensor, mask: Tensor) -> Tensor:
    return boxes if bool(mask.any()) else boxes * 0


SYNCHRONISING = [with_boolean_index, with_item, with_nonzero, with_branch]


@pytest.mark.parametrize("name", ["atss", "retinanet", "fcos_radius"])
def test_assignment_compiles_as_one_graph(name: str) -> None:
    function = partial(assignment, model=MODELS[name])
    *_, boxes, _, mask = example(MODELS[name])
    assert torch.equal(whole_graph(function)(boxes, mask), function(boxes, mask))


@pytest.mark.parametrize("name", ["atss", "fcos"])
def test_criterion_and_its_gradient_compile_as_one_graph(name: str) -> None:
    *outputs, boxes, labels, mask = example(MODELS[name])
    results = []
    plain_loss = partial(loss, model=MODELS[name])
    for function in (plain_loss, whole_graph(plain_loss)):
        leaves = [t.clone().requires_grad_() for t in outputs]
        value = function(*leaves, boxes, labels, mask)
        results.append((value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize("function", SYNCHRONISING)
def test_the_compiler_gate_catches(function: Callable[..., Tensor]) -> None:
    *_, boxes, _, mask = example(MODELS["atss"])
    with pytest.raises(TorchDynamoException):
        whole_graph(function)(boxes, mask)


def without_data(function: Callable[..., Tensor], *inputs: Tensor, gradient: bool = False) -> Tensor:
    """Run on tensors that have shapes only: whatever needs a value fails."""
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in inputs]
        if gradient:
            fakes = [t.requires_grad_() if t.is_floating_point() else t for t in fakes]
        result = function(*fakes)
        if gradient:
            result.backward()
        return result


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_assignment_runs_without_data(model: config.Model) -> None:
    *_, boxes, _, mask = example(model)
    total = sum(level.anchors for level in levels_of(model))
    function = partial(assignment, model=model)
    assert without_data(function, boxes, mask).shape == (2, total)
    assert without_data(function, boxes[:, :0], mask[:, :0]).shape == (2, total)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_criterion_and_its_gradient_run_without_data(model: config.Model) -> None:
    assert without_data(partial(loss, model=model), *example(model), gradient=True).shape == ()


@pytest.mark.parametrize("function", SYNCHRONISING)
def test_the_dataless_gate_catches(function: Callable[..., Tensor]) -> None:
    *_, boxes, _, mask = example(MODELS["atss"])
    with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
        without_data(function, boxes, mask)
