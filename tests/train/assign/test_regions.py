"""Regions to ignore: a slow reference over single points, and what the loss makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.assign import NEGATIVE, Assigned, ignore_regions
from train.build import build_criterion
from train.config import Model
from train.loss.criterion import Targets
from train.model.detector import DenseOutputs

CANVAS_HW = (64, 96)


def slowly(matched: np.ndarray, earlier: np.ndarray, regions: np.ndarray, points: np.ndarray) -> np.ndarray:
    ignored = earlier.copy()
    for b, rows in enumerate(regions):
        for n, (x, y) in enumerate(points):
            for x1, y1, x2, y2 in rows:
                if matched[b, n] == NEGATIVE and x1 < x < x2 and y1 < y < y2:
                    ignored[b, n] = True
    return ignored


@pytest.mark.parametrize("has_ignored", [False, True])
def test_negatives_in_a_region_are_ignored(has_ignored: bool) -> None:
    rng = np.random.default_rng(0)
    matched = rng.integers(-1, 2, (3, 40))
    points = rng.uniform(0, 30, (40, 2)).astype(np.float32)
    corner = rng.uniform(0, 20, (3, 4, 2))
    regions = np.concatenate([corner, corner + rng.uniform(0, 15, (3, 4, 2))], axis=2).astype(np.float32)
    regions[0, 2:] = regions[2] = 0
    earlier = rng.random((3, 40)) < 0.2 if has_ignored else np.zeros((3, 40), bool)
    given = Assigned(torch.from_numpy(matched), torch.from_numpy(earlier) if has_ignored else None)
    found = ignore_regions(given, torch.from_numpy(regions), torch.from_numpy(points))
    assert found.ignored is not None
    expected = slowly(matched, earlier, regions, points)
    np.testing.assert_array_equal(found.ignored.numpy(), expected)
    assert expected[:2].sum() > earlier[:2].sum()
    np.testing.assert_array_equal(expected[2], earlier[2])
    assert found.matched is given.matched
    none = ignore_regions(given, torch.zeros((3, 0, 4)), torch.from_numpy(points))
    assert none.ignored is not None
    np.testing.assert_array_equal(none.ignored.numpy(), earlier)


def test_nothing_is_learnt_in_a_region_but_objects() -> None:
    """What the network says in a region has no gradient, except of the anchors of an object that lies in it."""
    criterion = build_criterion(Model())
    shapes = [(-(-CANVAS_HW[0] // s), -(-CANVAS_HW[1] // s)) for s in (8, 16, 32, 64, 128)]
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.randn((1, channels, h, w), generator=generator) for h, w in shapes]

    logits = [level.requires_grad_() for level in maps(2)]
    outputs = DenseOutputs(logits, [level.abs() for level in maps(4)], maps(1))
    targets = Targets(torch.tensor([[[8.0, 8, 40, 40]]]), torch.tensor([[1]]), torch.tensor([[True]]))
    assigned = criterion.assign(targets, CANVAS_HW)
    points = criterion.grid(CANVAS_HW, torch.device("cpu")).points
    regions = torch.tensor([[[0.0, 0, 50, 64]]])
    criterion(outputs, targets, CANVAS_HW, assigned=ignore_regions(assigned, regions, points)).classification.backward()
    gradient = torch.cat([level.grad.flatten(2) for level in logits if level.grad is not None], dim=2)[0].abs().sum(0)
    is_positive = assigned.matched[0] >= 0
    assert is_positive.any()
    inside = (points[:, 0] < 50) & (points[:, 1] < 64)
    assert (gradient[inside & ~is_positive] == 0).all()
    assert (gradient[is_positive] > 0).all()
    assert (gradient[~inside] > 0).all()
