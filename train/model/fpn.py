"""Feature pyramid network (arXiv 1612.03144), with the extra levels of RetinaNet and FCOS."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.names import unknown_name

ExtraFrom = Literal["p5", "c5"]


class FeaturePyramid(nn.Module):
    """Turns maps at strides 8, 16, 32 into `levels` maps of `channels` at strides 8, 16, 32, 64 and so on.

    Each level beyond the third is a 3×3 convolution of stride 2 of the level before. The first of these is computed
    from the last output (`extra_from` "p5") or the last input ("c5"); `extra_relu` puts a ReLU before the others.
    """

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        levels: int,
        extra_from: ExtraFrom = "p5",
        extra_relu: bool = True,
    ) -> None:
        super().__init__()
        if not len(in_channels) <= levels:
            raise ValueError(f"a pyramid of {len(in_channels)} maps needs at least as many levels, not {levels}")
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self._relu = extra_relu
        match extra_from:
            case "p5":
                self._from_input, first = False, channels
            case "c5":
                self._from_input, first = True, in_channels[-1]
            case _:
                unknown_name(extra_from, "pyramid.extra_from", ExtraFrom)
        sources = [first] + [channels] * levels
        self.extra = nn.ModuleList(
            nn.Conv2d(c, channels, 3, stride=2, padding=1) for c in sources[: levels - len(in_channels)]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, in_channels[i], H/s, W/s], s = 8, 16, 32 → `levels` maps [B, channels, H/s, W/s], finest first."""
        laterals = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        merged = [laterals[-1]]
        for finer in reversed(laterals[:-1]):
            # Canvas sides are multiples of the coarsest stride, so each map is exactly twice the next.
            merged.insert(0, finer + F.interpolate(merged[0], scale_factor=2.0, mode="nearest"))
        outputs = [output(m) for output, m in zip(self.output, merged, strict=True)]
        for i, extra in enumerate(self.extra):
            source = maps[-1] if i == 0 and self._from_input else outputs[-1]
            outputs.append(extra(F.relu(source) if i > 0 and self._relu else source))
        return outputs
