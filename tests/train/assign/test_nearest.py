"""The window that replaces the distance matrix holds the k nearest cells, ties included, on every grid."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from train.geometry.anchors import Level

product = importlib.import_module("train.assign.atss")  # the package also has a function of that name

STRIDE = 8
GRIDS = [
    *((rows, columns) for rows in range(1, 9) for columns in range(1, 9)),
    *((1, 40), (40, 1), (2, 33), (33, 2), (3, 21), (21, 3), (4, 17), (17, 4), (5, 30), (12, 12), (13, 20)),
]


def awkward_centers(rows: int, columns: int) -> Tensor:
    """Points in quarters of a cell, [P, 2] px: middles, borders and corners of cells up to the grid's own edge."""
    x = torch.arange(4 * columns + 1) * (STRIDE / 4)
    y = torch.arange(4 * rows + 1) * (STRIDE / 4)
    if len(x) > 60:
        x = torch.cat((x[:20], x[len(x) // 2 : len(x) // 2 + 8], x[-20:]))
    if len(y) > 60:
        y = torch.cat((y[:20], y[len(y) // 2 : len(y) // 2 + 8], y[-20:]))
    points = torch.cartesian_prod(x, y)
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    bound = torch.tensor([columns, rows]) * STRIDE
    return torch.cat((points, torch.rand(40, 2, generator=generator) * bound))


def brute_force(points: Tensor, rows: int, columns: int) -> Tensor:
    """All cells of the grid in the order of their distance to each point [P, cells], ties by index."""
    cell = torch.arange(rows * columns)
    x, y = (cell % columns + 0.5) * STRIDE, (cell // columns + 0.5) * STRIDE
    distance = (points[:, :1] - x) ** 2 + (points[:, 1:] - y) ** 2
    return torch.sort(distance, dim=1, stable=True).indices


def check(rows: int, columns: int, k: int, points: Tensor, order: Tensor) -> None:
    boxes = torch.cat((points - 16, points + 16), dim=1).unsqueeze(0)
    index, anchors = product.nearest_on_all_levels(
        boxes, [Level(STRIDE, rows, columns, ((64.0, 64.0),), (STRIDE, STRIDE))], k
    )
    expected = order[:, : min(k, rows * columns)]
    wrong = (index[0] != expected).any(dim=1)
    assert not wrong.any(), f"{rows} × {columns}, k {k}, at {points[wrong][0].tolist()}"
    center = torch.stack(((expected % columns + 0.5) * STRIDE, (expected // columns + 0.5) * STRIDE), dim=-1)
    assert torch.equal(anchors[0], torch.cat((center - 32, center + 32), dim=-1))


@pytest.mark.parametrize("rows", sorted({rows for rows, _ in GRIDS}))
def test_the_nearest_anchors_equal_brute_force(rows: int) -> None:
    for columns in (c for r, c in GRIDS if r == rows):
        points = awkward_centers(rows, columns)
        order = brute_force(points, rows, columns)
        for k in range(1, 31):
            check(rows, columns, k, points, order)


def test_a_window_one_cell_too_small_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = awkward_centers(12, 12)
    order = brute_force(points, 12, 12)
    check(12, 12, 9, points, order)
    monkeypatch.setattr(product, "window_size", lambda rows, columns, k: (3, 3))
    with pytest.raises(AssertionError, match="k 9"):
        check(12, 12, 9, points, order)


def test_no_boxes() -> None:
    index, anchors = product.nearest_on_all_levels(torch.zeros(2, 0, 4), [Level(8, 4, 4, ((64.0, 64.0),), (8, 8))], 9)
    assert index.shape == (2, 0, 9)
    assert anchors.shape == (2, 0, 9, 4)


def test_the_window_does_not_grow_with_the_grid() -> None:
    assert product.window_size(1000, 1000, 9) == product.window_size(40, 40, 9)
    rows, columns = product.window_size(1000, 1000, 9)
    assert rows * columns <= 25
