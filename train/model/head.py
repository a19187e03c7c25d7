"""The head, shared by all pyramid levels: RetinaNet's towers with FCOS's GroupNorm, centerness and scales."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from runtime.names import unknown_name

from .deform import deformable_like, reset_offsets

CenternessFrom = Literal["none", "box", "class"]


class Head(nn.Module):
    """Two towers of 3×3 convolutions: one yields class logits, the other box codes; centerness comes from either.

    `anchors` is the number of anchors of a cell, A. `prior` is the probability that every anchor first predicts for
    each class. With 0 `group_norm_groups` there is no GroupNorm.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        levels: int,
        convolutions: int,
        group_norm_groups: int,
        prior: float,
        anchors: int = 1,
        centerness: CenternessFrom = "box",
        level_scales: bool = True,
        tower_bias: bool = False,
        deformable: bool = False,
    ) -> None:
        super().__init__()
        self.class_tower = _tower(channels, convolutions, group_norm_groups, tower_bias, deformable)
        self.box_tower = _tower(channels, convolutions, group_norm_groups, tower_bias, deformable)
        self.class_logits = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.box_regression = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        match centerness:
            case "none":
                self.centerness = None
            case "box" | "class":
                self.centerness = nn.Conv2d(channels, anchors, 3, padding=1)
            case _:
                unknown_name(centerness, "head.centerness", CenternessFrom)
        self._centerness_from_class = centerness == "class"
        self.scales = nn.Parameter(torch.ones(levels)) if level_scales else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        reset_offsets(self)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Maps [B, channels, h, w] → class logits, box codes and centerness logits, a list with one map per level each.

        Their shapes are [B, A·C, h, w], [B, A·4, h, w] and [B, A, h, w]; the last list is empty without centerness.
        """
        logits, regression, centerness = [], [], []
        for level, x in enumerate(maps):
            class_tower, box_tower = self.class_tower(x), self.box_tower(x)
            logits.append(self.class_logits(class_tower))
            code = self.box_regression(box_tower)
            regression.append(code * self.scales[level] if self.scales is not None else code)
            if self.centerness is not None:
                centerness.append(self.centerness(class_tower if self._centerness_from_class else box_tower))
        return logits, regression, centerness


def _tower(channels: int, convolutions: int, groups: int, bias: bool, deformable: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=bias or groups == 0)
        last = i == convolutions - 1
        layers.append(deformable_like(convolution) if deformable and last else convolution)
        if groups > 0:
            layers.append(nn.GroupNorm(groups, channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
