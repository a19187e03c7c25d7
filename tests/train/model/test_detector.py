"""The network: shapes, batches, normalisation, and how it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from runtime.manifest import Preprocess
from train.build import build_detector
from train.config import Config
from train.model.detector import DetectorNetwork
from train.model.fpn import FeaturePyramid
from train.model.head import Head

Make = Callable[..., Config]


def build(settings: Config, classes: int = 3, **preprocess: object) -> DetectorNetwork:
    torch.manual_seed(0)
    return build_detector(settings.model, classes, replace(settings.preprocess, **preprocess)).eval()


def photos(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("canvas_hw", [(64, 96), (32, 32), (160, 32), (96, 416)])
@torch.no_grad()
def test_maps_have_the_contracts_sizes(canvas_hw: tuple[int, int], small_config: Make) -> None:
    outputs = build(small_config())(photos(2, *canvas_hw))
    for maps, channels in zip(outputs, (3, 4, 1), strict=True):
        sizes = [tuple(m.shape) for m in maps]
        cells = [(-(-canvas_hw[0] // s), -(-canvas_hw[1] // s)) for s in (8, 16, 32, 64, 128)]
        assert sizes == [(2, channels, h, w) for h, w in cells]


@torch.no_grad()
def test_a_batch_of_three_equals_three_of_one(small_config: Make) -> None:
    detector, images = build(small_config()), photos(3, 64, 96)
    together = detector(images)
    for i in range(3):
        alone = detector(images[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x[i : i + 1], y, atol=1e-5, rtol=1e-4)


class Spy(nn.Module):
    """A backbone that keeps what it is given."""

    seen: Tensor

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen = x
        return [torch.zeros(len(x), 16, x.shape[2] // s, x.shape[3] // s) for s in (8, 16, 32)]


def eaten(pre: Preprocess, images: Tensor) -> Tensor:
    spy = Spy()
    detector = DetectorNetwork(spy, FeaturePyramid([16] * 3, 16, 5), Head(16, 2, 5, 1, 4, 0.01), pre, [])
    detector(images)
    return spy.seen


@torch.no_grad()
def test_normalisation_happens_inside_in_the_declared_channel_order() -> None:
    images = photos(2, 32, 32)
    pre = Preprocess(short_side=32, long_side=32, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0))
    rgb, bgr = eaten(pre, images), eaten(replace(pre, channel_order="bgr"), images)
    assert rgb.dtype == torch.float32
    for c in range(3):
        expected = (images[..., c].double() - (10, 20, 30)[c]) / (2, 4, 8)[c]
        torch.testing.assert_close(rgb[:, c].double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(bgr, rgb[:, [2, 1, 0]])


def test_mean_and_std_are_not_in_the_state(small_config: Make) -> None:
    assert not {"mean", "std"} & set(build(small_config()).state_dict())


@pytest.mark.parametrize("prior", [0.01, 0.2])
@torch.no_grad()
def test_every_class_starts_at_the_prior_probability(prior: float, small_config: Make) -> None:
    settings = small_config()
    model = replace(settings.model, head=replace(settings.model.head, prior_probability=prior))
    outputs = build(replace(settings, model=model))(photos(2, 64, 64))
    for m in outputs.class_logits:
        assert m.sigmoid().mean().item() == pytest.approx(prior, rel=0.1)
        assert (m.sigmoid() - prior).abs().max() < 0.5 * prior
    for m in outputs.box_regression:
        assert m.abs().max() < 0.5, "boxes start near their anchors"


@torch.no_grad()
def test_each_level_has_its_own_scale_and_shares_everything_else(small_config: Make) -> None:
    detector, images = build(small_config()), photos(1, 64, 64)
    before = detector(images)
    detector.head.scales[2] = 3.0
    after = detector(images)
    for level in range(5):
        factor = 3.0 if level == 2 else 1.0
        torch.testing.assert_close(after.box_regression[level], before.box_regression[level] * factor)
        assert torch.equal(after.class_logits[level], before.class_logits[level])
        assert torch.equal(after.centerness[level], before.centerness[level])


@torch.no_grad()
def test_coarse_features_reach_the_finest_level() -> None:
    pyramid = FeaturePyramid([4, 8, 16], 8, 5).eval()
    maps = [torch.zeros(1, c, 64 // s, 64 // s) for c, s in ((4, 8), (8, 16), (16, 32))]
    before = pyramid(maps)
    maps[2][0, :, 0, 0] = 5.0
    moved = [(a != b).any(dim=1)[0] for a, b in zip(pyramid(maps), before, strict=True)]
    assert moved[0][:5, :5].all(), "a coarse cell covers 4 × 4 fine ones, its output convolution one more"
    assert not moved[0][5:].any()
    assert not moved[0][:, 5:].any()
    assert all(m.any() for m in moved)


def test_a_pyramid_of_fewer_levels_than_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least as many levels"):
        FeaturePyramid([4, 8, 16], 8, 2)


def test_training_mode_leaves_frozen_norms_in_evaluation_mode(small_config: Make) -> None:
    settings = small_config()
    backbone = replace(settings.model.backbone, frozen_stages=2)
    detector = build(replace(settings, model=replace(settings.model, backbone=backbone))).train()
    assert not detector.backbone.bn1.training
    assert not detector.backbone.layer1[0].bn1.training
    assert detector.backbone.layer2[0].bn1.training
    assert detector.training
    assert not any(m.training for m in detector.eval().modules())


@torch.no_grad()
def test_the_pyramid_equals_its_drawing() -> None:
    """P5 … P3 top down, P6 from P5 as it is, P7 from P6 through a ReLU."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid([4, 8, 16], 8, 5)
    c3, c4, c5 = (torch.randn(2, c, 64 // s, 96 // s) for c, s in ((4, 8), (8, 16), (16, 32)))
    m5 = pyramid.lateral[2](c5)
    m4 = pyramid.lateral[1](c4) + m5.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    m3 = pyramid.lateral[0](c3) + m4.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = [conv(m) for conv, m in zip(pyramid.output, (m3, m4, m5), strict=True)]
    expected.append(pyramid.extra[0](expected[2]))
    expected.append(pyramid.extra[1](expected[3].clamp(min=0)))
    for found, wanted in zip(pyramid([c3, c4, c5]), expected, strict=True):
        torch.testing.assert_close(found, wanted)
