"""A GPU that there is not: tensors on it have shapes and no numbers, and whatever would make the host wait fails.

torch's FakeTensorMode refuses operations on tensors of two devices, and those whose result's size or value the host
must know. `HostWaits` refuses what it lets pass: copies between host and device, and host tensors as indices, which
torch copies silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAKE_GPU = torch.device("cuda", 0)


class HostWait(Exception):
    """A copy between host and device."""


class HostWaits(TorchDispatchMode):
    """Raises HostWait for an operation with tensors of both. A host tensor of one number may be an operand of others.

    A copy to the device that is asked not to wait passes; from pinned memory it doesn't. Fused steps of optimizers have
    no form without numbers in some versions of torch, and are left out.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_fused = str(func).startswith(("aten._fused_sgd_", "aten._fused_adamw_"))
        result = None if is_fused else func(*args, **(kwargs or {}))
        is_copy = "copy" in str(func)
        if is_copy and (kwargs or {}).get("non_blocking") and result.device == FAKE_GPU:
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = [tensor for tensor in given if tensor.dim() > 0 or is_copy]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if len({tensor.device.type for tensor in (*given, *made)}) > 1:
            raise HostWait(f"{func} of {[(tensor.device.type, list(tensor.shape)) for tensor in given]}")
        return result


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Inside, tensors have no numbers, and may be made on `FAKE_GPU`, where autocast and GradScaler work."""
    with FakeTensorMode(), patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False):
        yield


def to_fake_gpu(module: nn.Module) -> None:
    """Exchange a module's parameters and buffers by others on the GPU, in `fake_gpu`; memory formats stay."""

    def moved(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=FAKE_GPU)

    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(moved(parameter), parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, moved(buffer))
