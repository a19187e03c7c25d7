"""The focal loss against plain Python in float64 and against torchvision, at gentle and extreme logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tests.train import reference
from train.losses import focal_loss_sum


def example(anchors: int, classes: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(anchors, classes, generator=generator) * spread
    labels = torch.randint(-1, classes, (anchors,), generator=generator)
    return logits, labels


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels.unsqueeze(-1) == torch.arange(classes)).float()


def test_no_anchors_cost_nothing() -> None:
    assert focal_loss_sum(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 0.25, 2.0).item() == 0


@pytest.mark.parametrize("classes", [1, 7])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.0), (0.9, 3.0)])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_value_equals_plain_python_and_torchvision(classes: int, alpha: float, gamma: float, spread: float) -> None:
    logits, labels = example(60, classes, spread, seed=classes)
    found = focal_loss_sum(logits, labels, alpha, gamma).item()
    assert found == pytest.approx(reference.focal_loss(logits, labels.tolist(), alpha, gamma), rel=1e-5)
    theirs = sigmoid_focal_loss(logits, one_hot(labels, classes), alpha, gamma, reduction="sum").item()
    assert found == pytest.approx(theirs, rel=1e-4)


def test_gradient_equals_torchvisions() -> None:
    logits, labels = example(200, 5, 3.0, seed=3)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    focal_loss_sum(ours, labels, 0.25, 2.0).backward()
    sigmoid_focal_loss(theirs, one_hot(labels, 5).double(), 0.25, 2.0, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), atol=1e-6, rtol=1e-4)


def test_gradient_equals_numerical_differences() -> None:
    logits, labels = example(8, 3, 2.0, seed=4)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_loss_sum(x, labels, 0.25, 2.0), (logits,))


@pytest.mark.parametrize("extreme", [50.0, 200.0])
def test_extreme_logits_give_finite_values_and_gradients(extreme: float) -> None:
    logits = torch.tensor([[extreme, -extreme], [-extreme, extreme], [extreme, extreme]], requires_grad=True)
    for labels in ([0, 1, -1], [1, 0, 0], [-1, -1, -1]):
        value = focal_loss_sum(logits, torch.tensor(labels), 0.25, 2.0)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == pytest.approx(reference.focal_loss(logits, labels, 0.25, 2.0), rel=1e-5, abs=1e-6)
        assert gradient.isfinite().all()


def test_leading_dimensions_are_summed_over() -> None:
    logits, labels = example(24, 4, 2.0, seed=5)
    flat = focal_loss_sum(logits, labels, 0.25, 2.0)
    torch.testing.assert_close(focal_loss_sum(logits.view(2, 12, 4), labels.view(2, 12), 0.25, 2.0), flat)
