"""The head that all pyramid levels share (RetinaNet's towers, FCOS's GroupNorm, centerness and scales)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Two towers of 3×3 convolutions; class logits from one, box regression and centerness from the other."""

    def __init__(
        self, channels: int, num_classes: int, levels: int, convolutions: int, group_norm_groups: int, prior: float
    ) -> None:
        super().__init__()
        self.class_tower = _tower(channels, convolutions, group_norm_groups)
        self.box_tower = _tower(channels, convolutions, group_norm_groups)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_regression = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: class logits [B, C, h, w], box deltas [B, 4, h, w], centerness logits [B, 1, h, w]."""
        logits, regression, centerness = [], [], []
        for level, x in enumerate(maps):
            logits.append(self.class_logits(self.class_tower(x)))
            tower = self.box_tower(x)
            regression.append(self.box_regression(tower) * self.scales[level])
            centerness.append(self.centerness(tower))
        return logits, regression, centerness


def _tower(channels: int, convolutions: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
