"""ResNets against torchvision's, folding, freezing, and what is said where weights can't be had."""

from __future__ import annotations

import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from runtime.errors import UserError
from tests.train.test_checkpoint import Malicious
from train.build import build_criterion, build_detector
from train.config import Backbone, BackboneName
from train.config.recipes import atss_tiny
from train.loss.criterion import Targets
from train.model.backbones import BACKBONES, STRIDES, build_backbone, norms_to_freeze, timm_entry
from train.model.batch_norm import fold_batch_norms
from train.model.detector import DetectorNetwork
from train.model.timm_backbone import TimmBackbone
from train.model.weights import WeightsError
from train.trainer.optim import build_optimizer


def images(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def with_lively_norms(network: nn.Module) -> nn.Module:
    """Batch norms whose statistics and affine differ from the neutral ones, as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.add_(torch.rand(tensor.shape, generator=generator) * 0.3)
    return network


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_maps_equal_torchvisions(name: str, tmp_path: Path) -> None:
    """With the whole classifier's state dict read from a file, as a user would pass it."""
    theirs = with_lively_norms(torchvision.models.get_model(name, weights=None)).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build_backbone(Backbone(name, weights=str(tmp_path / "weights.pth"))).eval()
    taps = IntermediateLayerGetter(theirs, {"layer2": "c3", "layer3": "c4", "layer4": "c5"})
    with torch.no_grad():
        found, expected = ours(images()), list(taps(images()).values())
    for a, b, channels in zip(found, expected, ours.channels, strict=True):
        assert a.shape[1] == channels
        torch.testing.assert_close(a, b)


def test_the_other_resnets_have_torchvisions_parameters() -> None:
    for name in ("resnet34", "resnet101", "resnext101_32x8d"):
        expected = {k: v.shape for k, v in torchvision.models.get_model(name, weights=None).state_dict().items()}
        ours = {k: v.shape for k, v in build_backbone(Backbone(name, weights="none")).state_dict().items()}
        assert ours == {k: v for k, v in expected.items() if not k.startswith("fc.")}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_leaves_the_outputs_equal_and_no_norms(name: str) -> None:
    network = with_lively_norms(build_backbone(Backbone(name, weights="none"))).eval()
    with torch.no_grad():
        before = network(images())
        fold_batch_norms(network)
        after = network(images())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-3)


def test_folded_convolutions_learn_weight_and_bias_unless_frozen() -> None:
    network = build_backbone(Backbone("resnet18", weights="none", batch_norm="folded", frozen_stages=2))
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == name.startswith(("layer2", "layer3", "layer4")), name
    assert network.layer2[0].conv1.bias is not None


def test_a_norm_that_does_not_follow_a_convolution_is_not_folded() -> None:
    with pytest.raises(ValueError, match="doesn't follow a convolution of 5"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)))


def one_step(detector: DetectorNetwork) -> None:
    """A training step with a learning rate that no trainable weight survives unchanged."""
    recipe = atss_tiny()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([[[8.0, 8.0, 50.0, 50.0]], [[0.0, 0.0, 30.0, 20.0]]])
    targets = Targets(boxes, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))
    optimizer = build_optimizer(detector, recipe.schedule)
    detector.train()
    build_criterion(recipe.model)(detector(images), targets, (64, 64)).total.backward()
    optimizer.step()


def changed(backbone: Backbone) -> set[str]:
    """The backbone's tensors (counters aside) that a training step changes."""
    recipe = atss_tiny()
    detector = build_detector(replace(recipe.model, backbone=backbone), 1, recipe.preprocess)
    before = {k: v.clone() for k, v in detector.backbone.state_dict().items()}
    one_step(detector)
    return {k for k, v in detector.backbone.state_dict().items() if not torch.equal(v, before[k])}


def test_nothing_frozen_changes_everything() -> None:
    names = changed(Backbone("resnet18", weights="none", stem_channels=8))
    assert names == set(build_backbone(Backbone("resnet18", weights="none", stem_channels=8)).state_dict())


def test_frozen_stages_keep_weights_and_statistics() -> None:
    names = changed(Backbone("resnet18", weights="none", stem_channels=8, frozen_stages=2))
    assert not any(name.startswith(("conv1", "bn1", "layer1")) for name in names)
    assert {"layer2.0.conv1.weight", "layer2.0.bn1.running_mean", "layer4.1.bn2.weight"} <= names


def test_frozen_norms_keep_their_statistics_everywhere() -> None:
    names = changed(Backbone("resnet18", weights="none", stem_channels=8, batch_norm="frozen"))
    assert "layer2.0.conv1.weight" in names
    assert not any("running" in name or "num_batches" in name for name in names)


def test_frozen_norms_keep_their_affine_too() -> None:
    names = changed(Backbone("resnet18", weights="none", stem_channels=8, batch_norm="frozen"))
    assert not any(".bn" in name or name.startswith("bn1") or "downsample.1" in name for name in names)


def test_norms_to_freeze_are_those_of_the_configuration() -> None:
    network = build_backbone(Backbone("resnet18", weights="none"))
    every = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms_to_freeze(network, Backbone("resnet18")) == []
    assert norms_to_freeze(network, Backbone("resnet18", frozen_stages=1)) == [network.bn1]
    assert set(norms_to_freeze(network, Backbone("resnet18", batch_norm="frozen"))) == set(every)


def refusal(backbone: Backbone) -> str:
    with pytest.raises(UserError) as caught:
        build_backbone(backbone)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    assert "nowhere.pth" in refusal(Backbone("resnet18", weights=str(tmp_path / "nowhere.pth")))
    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth is not a state-dict file" in refusal(Backbone("resnet18", weights=str(tmp_path / "text.pth")))
    (tmp_path / "empty.pth").touch()
    assert "empty.pth is not a state-dict file" in refusal(Backbone("resnet18", weights=str(tmp_path / "empty.pth")))
    torch.save([1, 2], tmp_path / "list.pth")
    assert "doesn't hold a state dict" in refusal(Backbone("resnet18", weights=str(tmp_path / "list.pth")))


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "r18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    assert "don't fit resnet34" in refusal(Backbone("resnet34", weights=str(path)))
    assert "don't fit resnet50" in refusal(Backbone("resnet50", weights=str(path)))
    assert "don't fit resnet18" in refusal(Backbone("resnet18", weights=str(path), stem_channels=32))


def test_a_malicious_weights_file_runs_nothing(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    assert "evil.pth" in refusal(Backbone("resnet18", weights=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "ran").exists()


def test_other_widths_have_no_imagenet_weights() -> None:
    assert "--model.backbone.weights none" in refusal(Backbone("resnet18", stem_channels=32))
    message = "--model.backbone.stem-channels 32: resnet50 has no such setting"
    assert message in refusal(Backbone("resnet50", weights="none", stem_channels=32))


def test_without_a_network_the_message_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    message = refusal(Backbone("resnet18"))
    assert "https://download.pytorch.org/models/resnet18" in message
    assert "--model.backbone.weights FILE" in message


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_of_the_table_has_maps_at_strides_8_16_and_32(name: BackboneName) -> None:
    with torch.device("meta"):
        network = build_backbone(Backbone(name, weights="none")).eval()
        maps = network(torch.empty(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, 64 // stride, 96 // stride) for channels, stride in zip(network.channels, STRIDES, strict=True)
    ]


def test_groups_of_the_resnexts() -> None:
    for name, groups, width in (("resnext101_32x8d", 32, 256), ("resnext101_64x4d", 64, 256)):
        with torch.device("meta"):
            middle = build_backbone(Backbone(name, weights="none")).layer1[0].conv2
        assert (middle.groups, middle.out_channels) == (groups, width)


def test_bottleneck_settings() -> None:
    network = build_backbone(Backbone("resnet50", weights="none", bottleneck_stride="1x1", norm_epsilon=0.0))
    block = network.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.0}
    deformable = build_backbone(Backbone("resnet50", weights="none", deformable_stages=(4, 5)))
    kinds = [type(stage[-1].conv2).__name__ for stage in (deformable.layer2, deformable.layer3, deformable.layer4)]
    assert kinds == ["Conv2d", "DeformableConv2d", "DeformableConv2d"]
    with torch.no_grad():
        assert [m.shape[2:] for m in deformable(images(1))] == [(8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_deformable_stages_need_bottlenecks(name: str) -> None:
    with pytest.raises(UserError, match=r"deformable-stages 5: .* has no such setting"):
        build_backbone(Backbone(name, weights="none", deformable_stages=(5,)))
    with pytest.raises(WeightsError, match="no stage 1"):
        build_backbone(Backbone("resnet50", weights="none", deformable_stages=(1,)))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_larger_efficientnet_lites(number: int) -> None:
    network = build_backbone(Backbone(f"efficientnet_lite{number}", weights="none")).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 64, 96))
    assert [m.shape[1:] for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(network.channels, (8, 16, 32), strict=True)
    ]


# Networks of timm's that the table doesn't have, of three makes: how their weights' classifiers begin, their stages.
OTHERS = {
    "mobilenetv3_large_100": (("conv_head.", "classifier.", "norm_head."), 8),
    "regnety_004": (("head.", "final_conv."), 5),
    "resnet26d": (("fc.",), 6),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_new_timm_backbone_is_an_entry(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="pip install 'atss-toolkit[edge]'")
    classifier, stages = OTHERS[name]
    monkeypatch.setitem(BACKBONES, name, timm_entry(name, classifier=classifier, stages=stages))
    whole = with_lively_norms(timm.create_model(name, pretrained=False))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = Backbone(name, weights=str(tmp_path / "whole.pth"))  # type: ignore[arg-type]
    network = build_backbone(backbone).eval()
    assert len(network.stages) == stages
    theirs = timm.create_model(name, features_only=True, out_indices=(2, 3, 4), pretrained=False).eval()
    theirs.load_state_dict(whole.state_dict(), strict=False)
    with torch.no_grad():
        found, expected = network(images()), theirs(images())
        folded = build_backbone(replace(backbone, batch_norm="folded")).eval()(images())
    assert [m.shape[1:] for m in found] == [
        (c, 64 // s, 96 // s) for c, s in zip(network.channels, STRIDES, strict=True)
    ]
    for a, b, c in zip(found, expected, folded, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(c, b, atol=1e-3 * b.abs().max().item(), rtol=1e-3)
    frozen = build_backbone(replace(backbone, frozen_stages=stages))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    half = build_backbone(replace(backbone, frozen_stages=2))
    assert 0 < sum(not parameter.requires_grad for parameter in half.parameters()) < len(list(half.parameters()))
    with pytest.raises(UserError, match=f"frozen-stages {stages + 1}: {name} has {stages} stages"):
        build_backbone(replace(backbone, frozen_stages=stages + 1))


def test_maps_at_other_strides_are_refused() -> None:
    pytest.importorskip("timm", reason="pip install 'atss-toolkit[edge]'")
    with pytest.raises(ValueError, match=r"has maps at strides \[4, 8, 16\], the pyramid needs \[8, 16, 32\]"):
        TimmBackbone("regnety_004", out_indices=(1, 2, 3))
