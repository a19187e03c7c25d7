"""Modulated deformable convolution (DCNv2, arXiv 1811.11168), in two forms with the same weights and results.

`DeformableConv2d` calls torchvision's operator, which has a fast backward pass; `GridSampledConv2d` consists of
operators that ONNX has (GridSample and a 1×1 convolution). Training uses the first, `for_export` exchanges it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv2d(nn.Conv2d):
    """A k×k convolution whose taps are shifted and weighted; a second convolution of the input computes both.

    The channels of that convolution, `offset`, are (Δy, Δx) of each tap, row by row, then each tap's weight before the
    sigmoid. Its weights start at zero: the taps aren't shifted and all have the weight σ(0) = ½.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, bias: bool = False, kernel: int = 3
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.offset = nn.Conv2d(in_channels, 3 * kernel * kernel, kernel, stride, kernel // 2)
        self.reset_offset()

    def reset_offset(self) -> None:
        """Set the weights of `offset` to zero: no tap is shifted, and all have the same weight."""
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def taps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The taps' shifts [B, 2·k², h, w] in px and weights [B, k², h, w] in 0–1, float32, for input [B, C, H, W]."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        found = self.offset(x).float()
        return found[:, : 2 * taps], found[:, 2 * taps :].sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, out, H / stride, W / stride], computed in float32."""
        shift, weight = self.taps(x)
        bias = self.bias.float() if self.bias is not None else None
        padding = self.kernel_size[0] // 2
        return deform_conv2d(x.float(), shift, self.weight.float(), bias, self.stride, padding, 1, weight).to(x.dtype)


class GridSampledConv2d(DeformableConv2d):
    """The same function made of GridSample and a 1×1 convolution over taps and channels."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, out, H / stride, W / stride], computed in float32."""
        shift, weight = self.taps(x)
        height, width = x.shape[2:]
        rows, columns = shift.shape[2:]
        kernel, taps = self.kernel_size[0], self.kernel_size[0] * self.kernel_size[1]
        near = torch.arange(kernel, device=x.device) - kernel // 2
        tap_y = near.repeat_interleave(kernel).view(taps, 1, 1)
        tap_x = near.repeat(kernel).view(taps, 1, 1)
        base_y = (torch.arange(rows, device=x.device) * self.stride[0]).view(1, rows, 1)
        base_x = (torch.arange(columns, device=x.device) * self.stride[1]).view(1, 1, columns)
        shift = shift.unflatten(1, (taps, 2))
        y = shift[:, :, 0] + (base_y + tap_y).float()  # [B, taps, rows, columns], px of the input
        x_px = shift[:, :, 1] + (base_x + tap_x).float()
        # In GridSample's coordinates −1 and 1 are the outer edges of the first and the last pixel.
        grid = torch.stack(((2 * x_px + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        sampled = F.grid_sample(
            x.float(), grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False
        )
        sampled = sampled.unflatten(2, (taps, rows)) * weight.unsqueeze(1)  # [B, C, taps, rows, columns]
        bias = self.bias.float() if self.bias is not None else None
        kernels = self.weight.float().flatten(1).unsqueeze(-1).unsqueeze(-1)  # [out, C / groups · taps, 1, 1]
        return F.conv2d(sampled.flatten(1, 2), kernels, bias, groups=self.groups).to(x.dtype)


def deformable_like(convolution: nn.Conv2d) -> DeformableConv2d:
    """A deformable convolution with the shape, stride, groups and weights of a plain k×k one."""
    made = DeformableConv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.stride[0],
        convolution.groups,
        convolution.bias is not None,
        convolution.kernel_size[0],
    )
    made.load_state_dict(convolution.state_dict(), strict=False)
    return made


def for_export(module: nn.Module) -> nn.Module:
    """Exchange every deformable convolution, in place, for its form made of ONNX operators; the weights are shared."""
    for name, child in module.named_children():
        if isinstance(child, DeformableConv2d):
            portable = GridSampledConv2d(
                child.in_channels,
                child.out_channels,
                child.stride[0],
                child.groups,
                child.bias is not None,
                child.kernel_size[0],
            )
            portable.weight, portable.bias, portable.offset = child.weight, child.bias, child.offset
            portable.train(child.training)
            setattr(module, name, portable)
        else:
            for_export(child)
    return module


def reset_offsets(module: nn.Module) -> None:
    """Set the offsets of all deformable convolutions to zero again, after a general initialisation of the module."""
    for child in module.modules():
        if isinstance(child, DeformableConv2d):
            child.reset_offset()
