"""The one network: backbone → feature pyramid → shared head. Images in, dense tensors out, and nothing else.

No loss, no resizing, no NMS, no mode flags: those are functions beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from runtime.manifest import ChannelOrder, Preprocess
from runtime.names import unknown_name


class DenseOutputs(NamedTuple):
    """The network's raw outputs, one map per pyramid level, finest first."""

    class_logits: list[Tensor]  # [B, A·C, h, w], all classes of a cell's first anchor first
    box_regression: list[Tensor]  # [B, A·4, h, w] codes: deltas of the anchor, or distances of its centre (`coding`)
    centerness: list[Tensor]  # [B, A, h, w] logits; empty where the head has none


class DetectorNetwork(nn.Module):
    """Maps uint8 RGB canvases to dense outputs; normalisation happens here, so that a batch travels as bytes."""

    def __init__(
        self,
        backbone: nn.Module,
        pyramid: nn.Module,
        head: nn.Module,
        pre: Preprocess,
        frozen_norms: list[nn.Module],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self._frozen_norms = tuple(frozen_norms)
        match pre.channel_order:
            case "rgb":
                self._bgr = False
            case "bgr":
                self._bgr = True
            case _:
                unknown_name(pre.channel_order, "preprocess.channel_order", ChannelOrder)
        # Not in the state dict: they belong to the preprocessing, which a checkpoint's configuration carries.
        self.register_buffer("mean", torch.tensor(pre.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pre.std).reshape(1, 3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def train(self, mode: bool = True) -> DetectorNetwork:
        """As nn.Module.train; frozen batch norms keep their statistics."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> DenseOutputs:
        """Canvases uint8 [B, H, W, 3] RGB, H and W multiples of the backbone's coarsest stride → dense outputs."""
        # Cast before the permutation: TensorRT for RTX can't transpose uint8.
        x = images.to(self.mean.dtype).permute(0, 3, 1, 2)
        x = (x - self.mean) / self.std
        if self._bgr:
            x = x.flip(1)
        return DenseOutputs(*self.head(self.pyramid(self.backbone(x))))
