"""Counts the operations that torch dispatches for assignment and losses, which on a GPU cost more than their kernels.

    python -m benchmarks.operations

Views count too, since the host pays for them as well. A second call is counted: the first makes the canvas's anchors.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.assignment_benchmark import scene
from benchmarks.gpu.criteria import CRITERIA, random_outputs
from train import config
from train.build import build_criterion
from train.loss.criterion import Targets

CANVAS = (800, 1344)
BATCH, BOXES = 2, 7


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched inside the block, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], Any]) -> Counter[str]:
    """How often a call dispatches each operation."""
    with Operations() as found:
        function()
    return found.counts


def counts(model: config.Model, canvas_hw: tuple[int, int] = CANVAS) -> dict[str, int]:
    """The operations of a training step outside the network: assignment, losses, and the gradients of the outputs."""
    criterion, device = build_criterion(model), torch.device("cpu")
    boxes, mask = (found[:BATCH] for found in scene(canvas_hw, BOXES))
    targets = Targets(boxes, torch.zeros(mask.shape, dtype=torch.int64), mask)
    outputs = random_outputs(model, BATCH, canvas_hw, device)
    leaves = [m for maps in outputs for m in maps]
    assigned = criterion.assign(targets, canvas_hw)

    def losses() -> Tensor:
        return criterion(outputs, targets, canvas_hw, None, assigned).total

    total = losses()
    return {
        "assignment": operations(lambda: criterion.assign(targets, canvas_hw)).total(),
        "losses": operations(losses).total(),
        "gradients": operations(lambda: torch.autograd.grad(total, leaves)).total(),
    }


def main() -> int:
    """Print the counts for a criterion with each assigner."""
    for name, model in CRITERIA.items():
        print(f"{name}: " + ", ".join(f"{part} {count}" for part, count in counts(model).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
