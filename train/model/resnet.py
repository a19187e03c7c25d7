"""ResNet and ResNeXt, with torchvision's parameter names, so that its ImageNet weights load without renaming."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from runtime.names import unknown_name

from .deform import deformable_like
from .weights import State, WeightsError

BottleneckStride = Literal["3x3", "1x1"]
PUBLISHED_STEM = 64  # channels of the stem in every published ResNet


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385) or ResNeXt (1611.05431) without its classifier.

    `depths` are the numbers of blocks of the four stages; `stem_channels` scales every width.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        stem_channels: int,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem_channels
        widths = [stem_channels << stage for stage in range(4)]
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            out = width * block.expansion
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                shortcut = None
                if stride != 1 or channels != out:
                    shortcut = nn.Sequential(
                        Pointwise(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
                    )
                # A bottleneck's inner width is planes · base_width / 64, a basic block's is planes.
                blocks.append(block(channels, width, stride, shortcut, groups, width_per_group))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = [w * block.expansion for w in widths[1:]]
        _initialize(self)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The parts that can be frozen, from the input on: the stem, then four stages."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    @property
    def published(self) -> nn.Module:
        """The module whose state dict has the names of the published weights."""
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → maps [B, `channels[i]`, H / s, W / s] for s in 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


class Pointwise(nn.Conv2d):
    """A 1×1 convolution, of any stride, without padding.

    oneDNN 3.12 (torch 2.14) writes beyond the gradient of the input where that has fewer than 16 channels, the layout
    is channels-last, the stride is 2 and the processor has AVX-512; the process then dies. Taking every second pixel
    first gives the same output without that kernel. Exported graphs have no backward pass, and keep the convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, `out_channels`, H / stride, W / stride], rounded up."""
        is_safe = self.stride == (1, 1) or self.in_channels >= 16 or x.device.type != "cpu"
        if is_safe or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return super().forward(x)
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias)


def move_stride(network: ResNet, convolution: BottleneckStride) -> None:
    """Choose the convolution of a bottleneck that has the stride: torchvision's 3×3, or the first publication's 1×1."""
    match convolution:
        case "3x3":
            return
        case "1x1":
            for block in network.modules():
                if isinstance(block, Bottleneck):
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
        case _:
            unknown_name(convolution, "backbone.bottleneck_stride", BottleneckStride)


def make_deformable(network: ResNet, stages: tuple[int, ...]) -> None:
    """Exchange the 3×3 convolutions of the bottlenecks of some stages (2 … 5) for deformable ones."""
    layers = {2: network.layer1, 3: network.layer2, 4: network.layer3, 5: network.layer4}
    if unknown := set(stages) - set(layers):
        raise WeightsError(f"no stage {min(unknown)} to make deformable: stages are 2, 3, 4 and 5")
    for stage in stages:
        for block in layers[stage]:
            assert isinstance(block, Bottleneck)
            block.conv2 = deformable_like(block.conv2)


def torchvision_state(name: str, stem_channels: int) -> tuple[State, str]:
    """The ImageNet weights of torchvision's network `name`, and where they come from. Raises WeightsError."""
    if stem_channels != PUBLISHED_STEM:
        raise WeightsError(
            f"{name} with {stem_channels} stem channels has no ImageNet weights: "
            f"use {PUBLISHED_STEM}, or --model.backbone.weights none"
        )
    weights = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=True, check_hash=True), f"torchvision's {name}"
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights of {name} could not be downloaded from {weights.url}: {error}. "
            "Fetch that file on a machine with a network and pass it with --model.backbone.weights FILE, "
            "or train from scratch with --model.backbone.weights none"
        ) from error


def _initialize(network: nn.Module) -> None:
    """He initialisation for training from scratch (arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
