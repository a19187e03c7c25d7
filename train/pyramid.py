"""Feature pyramid network (arXiv 1612.03144), with the extra levels of RetinaNet and FCOS."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Maps at strides 8, 16, 32 → `levels` maps of `channels` at strides 8, 16, 32, 64, …

    Levels beyond the third come from the one before by a 3×3 convolution of stride 2.
    """

    def __init__(self, in_channels: list[int], channels: int, levels: int) -> None:
        super().__init__()
        if not len(in_channels) <= levels:
            raise ValueError(f"a pyramid on {len(in_channels)} maps has at least as many levels, not {levels}")
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(levels - len(in_channels))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, in_channels[i], H / s, W / s] → maps [B, channels, H / s, W / s], finest first."""
        laterals = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        merged = [laterals[-1]]
        for finer in reversed(laterals[:-1]):
            # Canvas sides are multiples of 32, so each map is exactly twice the next.
            merged.insert(0, finer + F.interpolate(merged[0], scale_factor=2.0, mode="nearest"))
        outputs = [output(m) for output, m in zip(self.output, merged, strict=True)]
        for i, extra in enumerate(self.extra):
            outputs.append(extra(outputs[-1] if i == 0 else F.relu(outputs[-1])))
        return outputs
