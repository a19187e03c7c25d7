"""DCNv2's two forms: equal values and gradients, equal to a plain convolution where nothing is shifted."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from train.model.deform import DeformableConv2d, GridSampledConv2d, deformable_like, for_export


class Pair(NamedTuple):
    operator: DeformableConv2d
    portable: GridSampledConv2d


def pair(stride: int, groups: int, spread: float, kernel: int = 3) -> Pair:
    """Both forms with the same weights, the offsets such that taps move by about `spread` px."""
    torch.manual_seed(stride + groups)
    made = nn.ModuleDict({"it": DeformableConv2d(8, 12, stride, groups, bias=True, kernel=kernel)})
    operator = made["it"]
    assert isinstance(operator, DeformableConv2d)
    nn.init.normal_(operator.offset.weight, std=spread / 8)
    nn.init.normal_(operator.offset.bias, std=spread / 2)
    portable = for_export(made)["it"]
    assert isinstance(portable, GridSampledConv2d)
    return Pair(operator, portable)


@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_both_forms_agree_in_values_and_gradients(stride: int, groups: int, spread: float) -> None:
    forms = pair(stride, groups, spread)
    x = torch.randn(2, 8, 10, 13)
    results = []
    for form in forms:
        leaf = x.clone().requires_grad_()
        out = form(leaf)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        leaves = [leaf, form.weight, form.bias, form.offset.weight, form.offset.bias]
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    gradients = zip(results[0][1:], results[1][1:], strict=True)
    # On whole pixels bilinear sampling has a kink: the slopes to its left and right are both right for the offsets.
    for a, b in list(gradients)[: 3 if spread == 0 else 5]:
        scale = a.abs().max().clamp(min=1)
        assert float((a - b).abs().max() / scale) < 1e-3


def test_freshly_made_it_is_half_a_convolution() -> None:
    plain = nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False)
    x = torch.randn(1, 6, 9, 12)
    torch.testing.assert_close(deformable_like(plain)(x), plain(x) / 2, atol=1e-5, rtol=1e-5)


def test_five_by_five_kernels() -> None:
    forms = pair(1, 1, 2.0, kernel=5)
    x = torch.randn(1, 8, 7, 9)
    torch.testing.assert_close(forms.portable(x), forms.operator(x), atol=1e-4, rtol=1e-4)


def test_a_tap_moved_by_whole_pixels_reads_that_pixel() -> None:
    """All taps but one weigh nothing; that one is sent two rows down and one column left. Outside there are zeros."""
    operator, portable = pair(1, 1, 0.0)
    x = torch.randn(1, 8, 6, 7)
    with torch.no_grad():
        operator.weight.zero_()
        operator.bias.zero_()
        operator.weight[0, 3, 1, 1] = 1.0  # the tap in the middle
        operator.offset.bias[2 * 4], operator.offset.bias[2 * 4 + 1] = 2.0, -1.0
        operator.offset.bias[18 + 4] = 50.0  # weight 1
    expected: Tensor = torch.zeros(6, 7)
    expected[:4, 1:] = x[0, 3, 2:, :-1]
    for form in (operator, portable):
        torch.testing.assert_close(form(x)[0, 0], expected, atol=1e-5, rtol=0)
