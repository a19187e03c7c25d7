"""Assignment and criterion never look at a value: they compile as one graph and run on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

from tests.train.test_assign import random_scene
from train import config
from train.anchors import pyramid_levels
from train.assign import atss
from train.criterion import Targets, criterion
from train.detector import DenseOutputs

CANVAS = (96, 128)
LEVELS = pyramid_levels(CANVAS, 5, config.Anchors())
MODEL = config.Model()


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


def assignment(boxes: Tensor, mask: Tensor) -> Tensor:
    return atss(boxes, mask, LEVELS, 9).matched


def loss(logits: Tensor, deltas: Tensor, center: Tensor, boxes: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """The criterion of flat outputs [B, channels, N], cut into levels."""
    sizes = [level.cells for level in LEVELS]

    def maps(flat: Tensor) -> list[Tensor]:
        parts = flat.split(sizes, dim=2)
        return [p.unflatten(2, (v.rows, v.columns)) for p, v in zip(parts, LEVELS, strict=True)]

    outputs = DenseOutputs(maps(logits), maps(deltas), maps(center))
    return criterion(outputs, Targets(boxes, labels, mask), CANVAS, MODEL).total


def example() -> tuple[Tensor, ...]:
    total = sum(level.cells for level in LEVELS)
    torch.manual_seed(0)
    outputs = [torch.randn(2, channels, total) for channels in (4, 4, 1)]
    boxes = torch.stack([random_scene(CANVAS, 5, seed) for seed in (1, 2)])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    return *outputs, boxes, torch.randint(0, 4, (2, 5)), mask


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


def test_assignment_compiles_as_one_graph() -> None:
    *_, boxes, _, mask = example()
    assert torch.equal(whole_graph(assignment)(boxes, mask), assignment(boxes, mask))


def test_criterion_and_its_gradient_compile_as_one_graph() -> None:
    *outputs, boxes, labels, mask = example()
    results = []
    for function in (loss, whole_graph(loss)):
        leaves = [t.clone().requires_grad_() for t in outputs]
        value = function(*leaves, boxes, labels, mask)
        results.append((value, *torch.autograd.grad(value, leaves)))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize("function", SYNCHRONISING)
def test_the_compiler_gate_catches(function: Callable[..., Tensor]) -> None:
    *_, boxes, _, mask = example()
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


def test_assignment_runs_without_data() -> None:
    *_, boxes, _, mask = example()
    total = sum(level.cells for level in LEVELS)
    assert without_data(assignment, boxes, mask).shape == (2, total)
    assert without_data(assignment, boxes[:, :0], mask[:, :0]).shape == (2, total)


def test_criterion_and_its_gradient_run_without_data() -> None:
    assert without_data(loss, *example(), gradient=True).shape == ()


@pytest.mark.parametrize("function", SYNCHRONISING)
def test_the_dataless_gate_catches(function: Callable[..., Tensor]) -> None:
    *_, boxes, _, mask = example()
    with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
        without_data(function, boxes, mask)
