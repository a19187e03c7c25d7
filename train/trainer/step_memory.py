"""Memory of a training step, found by running the step on tensors without numbers (torch's FakeTensorMode)."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..loss.criterion import Criterion, Targets
from .backward import backward


class LiveBytes(TorchDispatchMode):
    """Adds up the memory of all tensors that operations make, while they live; `peak` is the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is freed; memory that tensors share counts once."""
        storage = tensor.untyped_storage()
        key = id(storage)  # torch keeps the object as long as the memory
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, storage.nbytes()).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.add(result)
        return results


class _CudaAutocast(TorchFunctionMode):
    """GroupNorm in float32, as autocast has it on CUDA and not on a CPU; of the network's operations no other differs.

    https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.group_norm:
            args = tuple(arg.float() if isinstance(arg, Tensor) else arg for arg in args)
        return func(*args, **(kwargs or {}))


class _WithParameters(nn.Module):
    """A network that runs with other parameters and buffers, by name, than its own."""

    def __init__(self, network: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._run = lambda images: torch.func.functional_call(network, tensors, (images,))

    def forward(self, images: Tensor) -> Any:
        return self._run(images)


def step_memory(
    network: nn.Module,
    criterion: Criterion,
    images: int,
    canvas_hw: tuple[int, int],
    boxes: int,
    dtype: torch.dtype = torch.float32,
    pieces: int = 1,
    device: str = "cpu",
) -> int:
    """Bytes at the peak of forward, losses and backward of a batch in `pieces`, under autocast to `dtype`.

    `device`, "cpu" or "cuda", is that of the autocast; nothing is allocated on it. Weights, their gradients, the batch
    of `images` with `boxes` objects each, and all that is kept for the backward pass count. What a library takes by
    itself does not: workspaces of convolutions, CUDA's context, and the blocks by which allocators round. `criterion`
    must be used for nothing else: it keeps anchors of this run.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            name: torch.empty_like(tensor, device="cpu").requires_grad_(tensor.requires_grad)
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        }
        batch = torch.empty((images, *canvas_hw, 3), dtype=torch.uint8)
        targets = Targets(
            torch.empty((images, boxes, 4)),
            torch.empty((images, boxes), dtype=torch.int64),
            torch.empty((images, boxes), dtype=torch.bool),
        )
        live = LiveBytes()
        for tensor in (*tensors.values(), batch, *targets):
            live.add(tensor)
        with live, _CudaAutocast() if device == "cuda" else contextlib.nullcontext():
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            backward(_WithParameters(network, tensors), criterion, batch, targets, pieces, dtype, scaler)
        return live.peak
