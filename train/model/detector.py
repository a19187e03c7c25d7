"""The network of every detector: backbone → feature pyramid → shared head, from images to dense tensors.

Loss, resizing and NMS are functions beside it. B images, A anchors of a cell, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from runtime.manifest import ChannelOrder, Preprocess
from runtime.names import unknown_name


class DenseOutputs(NamedTuple):
    """The network's raw outputs: lists with one map per pyramid level, finest first; h × w are the level's cells."""

    class_logits: list[
        Tensor
    ]  # [B, A·C, h, w]; the channels are all classes of a cell's first anchor, then of its second, …
    box_regression: list[Tensor]  # [B, A·4, h, w] codes: deltas of the anchor, or distances from its centre
    centerness: list[Tensor]  # [B, A, h, w] logits; empty where the head has none


class DetectorNetwork(nn.Module):
    """Maps uint8 RGB canvases to dense outputs. It normalises the images, so that a batch travels as bytes.

    `frozen_norms` are the batch norms that stay in evaluation mode while training.
    """

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
        # Not in the state dict: mean and std belong to the preprocessing, which is in a checkpoint's configuration.
        self.register_buffer("mean", torch.tensor(pre.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pre.std).reshape(1, 3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def train(self, mode: bool = True) -> DetectorNetwork:
        """Set the mode like nn.Module.train; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> DenseOutputs:
        """Dense outputs of canvases uint8 [B, H, W, 3] RGB, whose sides are multiples of the coarsest stride.

        Per level of stride s: class logits [B, A·C, H/s, W/s], box codes [B, A·4, H/s, W/s], and centerness logits
        [B, A, H/s, W/s] if the head has any; rounded up where s doesn't divide H or W.
        """
        # Cast before the permutation: TensorRT for RTX can't transpose uint8.
        x = images.to(self.mean.dtype).permute(0, 3, 1, 2)
        x = (x - self.mean) / self.std
        if self._bgr:
            x = x.flip(1)
        return DenseOutputs(*self.head(self.pyramid(self.backbone(x))))
