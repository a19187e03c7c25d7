"""Batch norms merged into the convolutions before them, for inference and for fine-tuning."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Merge every batch norm into the convolution before it, in place.

    The outputs stay those of evaluation mode. Raises ValueError for a norm with other channels than the convolution.
    """
    previous: tuple[nn.Module, str, nn.Conv2d] | None = None
    for parent, name, child in _leaves_in_order(module):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            convolution = previous[2]
            if convolution.out_channels != child.num_features:
                raise ValueError(f"batch norm {name} doesn't follow a convolution of {child.num_features} channels")
            _fold(convolution, child)
            setattr(parent, name, dict(child.named_children()).get("act", nn.Identity()))  # timm's norms contain one
        previous = (parent, name, child) if isinstance(child, nn.Conv2d) else None
    return module


def _leaves_in_order(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, leaf) in the order of definition, which in these networks is the order of execution."""
    found = []
    for name, child in module.named_children():
        whole = isinstance(child, (nn.Conv2d, nn.BatchNorm2d)) or not any(True for _ in child.children())
        found += [(module, name, child)] if whole else _leaves_in_order(child)
    return found


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    # torch adds a bias without a gradient where there was none; it takes the place of the norm's, which is learnt.
    bias.requires_grad_(weight.requires_grad)
    convolution.weight, convolution.bias = weight, bias
