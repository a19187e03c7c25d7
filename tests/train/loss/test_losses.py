"""The focal loss against plain Python in float64 and against torchvision, at gentle and extreme logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import sigmoid_focal_loss

from tests.support import reference
from train.loss.losses import focal_loss_sum


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


class Written(TorchDispatchMode):
    """The floating and other tensors of `size` elements that operators write, views aside."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.storages = size, dict[int, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.size:
            self.storages[out.untyped_storage().data_ptr()] = out  # held, so that no address is used twice
        return out


def memory_of(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[set[torch.dtype], float]:
    """Types of the [anchors, classes] tensors that a loss writes; bytes kept for backward, in logits' bytes."""
    logits, labels = example(500, 80, 2.0, seed=6)
    logits.requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with Written(logits.numel()) as written, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(logits, labels)
    assert value.requires_grad
    kept.pop(logits.untyped_storage().data_ptr(), None)
    return {tensor.dtype for tensor in written.storages.values()}, sum(kept.values()) / logits.nbytes


def test_no_target_of_anchors_times_classes_is_built() -> None:
    """Three terms of the logits' size wait for backward; nothing else has that size, neither integers nor a mask."""
    dtypes, kept = memory_of(lambda logits, labels: focal_loss_sum(logits, labels, 0.25, 2.0, labels == -1))
    assert dtypes == {torch.float32}
    assert kept < 3.2


def test_a_one_hot_target_would_be_noticed() -> None:
    dtypes, kept = memory_of(lambda x, labels: sigmoid_focal_loss(x, one_hot(labels, 80), 0.25, 2.0, reduction="sum"))
    assert torch.bool in dtypes
    assert kept > 5
