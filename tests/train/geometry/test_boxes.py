"""Box arithmetic against plain Python in float64 and against torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from tests.support import reference
from train.config import Regression
from train.geometry.box_coder import decode
from train.geometry.boxes import MAX_LOG_RATIO, area, centerness, centers, giou, iou

STD = (0.1, 0.1, 0.2, 0.2)
DELTAS = Regression(start="box", delta_std=STD)


def random_boxes(count: int, seed: int, side: float = 100.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * side + 0.1), dim=1)


@pytest.mark.parametrize("function", [iou, giou])
def test_no_boxes_give_no_values(function) -> None:
    empty = torch.zeros(0, 4)
    assert function(empty, empty).shape == (0,)
    assert function(empty[:, None], random_boxes(3, 0)).shape == (0, 3)
    assert decode(empty, 1, empty, DELTAS).shape == (0, 4)
    assert centerness(centers(empty), empty).shape == (0,)
    assert area(empty).shape == (0,)


@pytest.mark.parametrize(
    ("ours", "slow", "theirs"),
    [
        (iou, reference.iou, tv.box_iou),
        (giou, reference.giou, tv.generalized_box_iou),
    ],
)
def test_overlaps_equal_plain_python_and_torchvision(ours, slow, theirs) -> None:
    a, b = random_boxes(30, 1), torch.cat((random_boxes(20, 2), random_boxes(5, 3) + 1000, random_boxes(30, 1)[:5]))
    found = ours(a[:, None], b)
    expected = torch.tensor([[slow(x, y) for y in b.tolist()] for x in a.tolist()])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found, theirs(a, b), atol=2e-6, rtol=1e-5)
    assert found[:5, 25:].diagonal().allclose(torch.ones(5)), "a box with itself"


def test_overlap_of_empty_boxes_is_finite_with_finite_gradient() -> None:
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    for other in (box, point.detach()):
        for function in (iou, giou):
            value = function(point, other)
            (gradient,) = torch.autograd.grad(value.sum(), point)
            assert value.isfinite().all()
            assert gradient.isfinite().all()
    assert iou(point.detach(), point.detach()).item() == 0


def test_giou_gradient_equals_torchvisions() -> None:
    a, b = random_boxes(40, 4), random_boxes(40, 5)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    (1 - giou(ours, b)).sum().backward()
    generalized_box_iou_loss(theirs, b, reduction="sum").backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_giou_lies_in_its_range() -> None:
    far = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1e4, 1e4, 1e4 + 1, 1e4 + 1]])
    assert -1 <= giou(*far).item() < -0.999
    touching = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]])
    assert giou(*touching).item() == pytest.approx(0, abs=1e-6)


def test_decoding_equals_plain_python() -> None:
    anchors = random_boxes(50, 6)
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(7)) * 5
    deltas[0] = 0
    deltas[1] = torch.tensor([0.0, 0.0, 1000.0, 1000.0])  # limited
    deltas[2] = torch.tensor([0.0, 0.0, -1000.0, -1000.0])  # vanishes
    found = decode(anchors, 1, deltas, DELTAS)
    expected = [reference.decode(a, d, STD) for a, d in zip(anchors.tolist(), deltas.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(found[0], anchors[0])
    grown = (found[1, 2] - found[1, 0]) / (anchors[1, 2] - anchors[1, 0])
    assert grown.item() == pytest.approx(math.exp(MAX_LOG_RATIO), rel=1e-4)


def test_decoding_equals_torchvisions_coder() -> None:
    from torchvision.models.detection._utils import BoxCoder

    anchors, deltas = random_boxes(50, 8), torch.randn(50, 4, generator=torch.Generator().manual_seed(9)) * 10
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    expected = coder.decode_single(deltas, anchors)
    torch.testing.assert_close(decode(anchors, 1, deltas, DELTAS), expected, atol=1e-2, rtol=1e-4)


def test_centerness_equals_plain_python() -> None:
    boxes = random_boxes(200, 10)
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(11)) * 150
    points[:60] = centers(boxes[:60]) + (points[:60] - 75) * 0.2
    found = centerness(points, boxes)
    expected = [reference.centerness(p, b) for p, b in zip(points.tolist(), boxes.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert 0 < (found > 0).sum() < 200, "points inside and outside were tried"


def test_centerness_is_1_in_the_middle_and_0_on_the_edge() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 4.0])
    points = torch.tensor([[5.0, 2.0], [0.0, 2.0], [5.0, 4.0], [10.0, 0.0], [11.0, 2.0], [-3.0, -3.0]])
    assert centerness(points, box).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("point", [(0.0, 2.0), (10.0, 4.0), (12.0, 2.0), (5.0, 2.0)])
def test_centerness_has_finite_gradients_everywhere(point: tuple[float, float]) -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 4.0], requires_grad=True)
    where = torch.tensor(point, requires_grad=True)
    centerness(where, box).backward()
    assert box.grad.isfinite().all()
    assert where.grad.isfinite().all()


def test_centerness_of_an_empty_box_is_0() -> None:
    assert centerness(torch.zeros(2), torch.zeros(4)).item() == 0
