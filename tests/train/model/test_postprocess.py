"""Candidates against a plain loop over images, levels, cells and classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from runtime.manifest import Thresholds
from tests.support import reference
from train import config
from train.build import build_postprocess
from train.model.detector import DenseOutputs
from train.model.postprocess import Canvases, select_candidates
from train.model.ranking import AnchorRange

MODEL = config.Model(anchors=config.Anchors(scale=4.0))
Row = tuple[float, int, list[float]]


def outputs_of(canvas_hw: tuple[int, int], classes: int, batch: int = 2, bias: float = -2.0) -> DenseOutputs:
    generator = torch.Generator().manual_seed(classes)
    maps: list[list[Tensor]] = [[], [], []]
    for level in range(3):
        h, w = canvas_hw[0] // (8 << level), canvas_hw[1] // (8 << level)
        for found, channels, shift in zip(maps, (classes, 4, 1), (bias, 0.0, 0.0), strict=True):
            found.append(torch.randn(batch, channels, h, w, generator=generator) * 2 + shift)
    return DenseOutputs(*maps)


def select(
    outputs: DenseOutputs, sizes: Tensor, thresholds: Thresholds, ranges: list[AnchorRange] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return select_candidates(
        outputs, sizes, build_postprocess(MODEL, thresholds), Canvases(ranges, None) if ranges else None
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow(outputs: DenseOutputs, image: int, size_hw: tuple[int, int], thresholds: Thresholds) -> list[list[Row]]:
    """Per level the (score, class, box) of one image, best first."""
    levels = []
    for level, (logits, deltas, center) in enumerate(zip(*outputs, strict=True)):
        stride, rows = 8 << level, []
        for i in range(logits.shape[2]):
            for j in range(logits.shape[3]):
                x, y, half = (j + 0.5) * stride, (i + 0.5) * stride, 4 * stride / 2
                box = reference.decode(
                    [x - half, y - half, x + half, y + half],
                    deltas[image, :, i, j].tolist(),
                    MODEL.regression.delta_std,
                )
                clipped = [min(max(v, 0.0), float(size_hw[1 - a % 2])) for a, v in enumerate(box)]
                for c in range(logits.shape[1]):
                    probability = sigmoid(logits[image, c, i, j].item())
                    if probability > thresholds.score:
                        final = math.sqrt(probability * sigmoid(center[image, 0, i, j].item()))
                        rows.append((final, c, clipped))
        rows.sort(key=lambda row: -row[0])
        levels.append(rows[: thresholds.candidates_per_level])
    return levels


def check(
    outputs: DenseOutputs, sizes: Tensor, thresholds: Thresholds, ranges: list[AnchorRange] | None = None
) -> None:
    boxes, scores, classes = select(outputs, sizes, thresholds, ranges)
    assert (boxes.dtype, scores.dtype, classes.dtype) == (torch.float32, torch.float32, torch.int32)
    for image, size in enumerate(sizes.tolist()):
        expected = slow(outputs, image, tuple(size), thresholds)
        first = 0
        for level, rows in enumerate(expected):
            labels, h, w = outputs.class_logits[level][0].shape
            anchors = ranges[level].most if ranges else h * w
            count = min(thresholds.candidates_per_level, anchors * labels)
            part = slice(first, first + count)
            first += count
            found = scores[image, part]
            torch.testing.assert_close(found[: len(rows)], torch.tensor([r[0] for r in rows]), atol=1e-6, rtol=1e-5)
            assert classes[image, part][: len(rows)].tolist() == [r[1] for r in rows]
            wanted = torch.tensor([r[2] for r in rows]).reshape(-1, 4)
            torch.testing.assert_close(boxes[image, part][: len(rows)], wanted, atol=1e-3, rtol=1e-5)
            assert (found[len(rows) :] == 0).all()
            assert (classes[image, part][len(rows) :] == -1).all()
            assert (boxes[image, part][len(rows) :] == 0).all()
        assert first == scores.shape[1]


@pytest.mark.parametrize("classes", [1, 5])
def test_equals_the_plain_loop(classes: int) -> None:
    """On canvases larger than the images, so that clipping shows."""
    check(outputs_of((64, 96), classes), torch.tensor([[50, 96], [64, 33]], dtype=torch.int32), Thresholds())


def test_more_than_the_limit_per_level_keeps_the_best() -> None:
    thresholds = Thresholds(candidates_per_level=37)
    check(outputs_of((64, 96), 5, bias=2.0), torch.tensor([[64, 96], [64, 90]], dtype=torch.int32), thresholds)


def test_a_thousand_of_a_level_are_kept() -> None:
    outputs = outputs_of((128, 160), 5, batch=1, bias=2.0)
    check(outputs, torch.tensor([[128, 160]], dtype=torch.int32), Thresholds())
    assert select(outputs, torch.tensor([[128, 160]]), Thresholds())[1].shape == (
        1,
        1000 + 400 + 100,
    )


@pytest.mark.parametrize("limit", [5, 12, 23, 24, 25, 95, 96, 97, 100, 191, 192, 193])
@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 8), (0.25, 1), (0.25, 8)])
def test_a_graph_of_many_canvases(limit: int, least: float, most: int) -> None:
    """Levels with fewer anchors than rows, as many, and more; on the smallest canvas, the largest, and between."""
    outputs, sizes = outputs_of((64, 96), 2, bias=1.0), torch.tensor([[64, 96], [40, 60]], dtype=torch.int32)
    cells = [level.shape[2] * level.shape[3] for level in outputs.class_logits]
    assert cells == [96, 24, 6]
    ranges = [AnchorRange(math.ceil(count * least), count * most) for count in cells]
    check(outputs, sizes, Thresholds(candidates_per_level=limit), ranges)


def test_nothing_above_the_threshold() -> None:
    outputs = outputs_of((64, 64), 3, bias=-50.0)
    sizes = torch.tensor([[64, 64], [64, 64]])
    for ranges in (None, [AnchorRange(1, 2000)] * 3):
        boxes, scores, classes = select(outputs, sizes, Thresholds(), ranges)
        assert (boxes == 0).all()
        assert (scores == 0).all()
        assert (classes == -1).all()


def test_an_empty_batch() -> None:
    boxes, scores, classes = select(
        outputs_of((32, 32), 2, batch=0), torch.zeros(0, 2, dtype=torch.int32), Thresholds()
    )
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 42, 4), (0, 42), (0, 42))


def test_a_score_must_exceed_the_threshold() -> None:
    outputs = outputs_of((32, 32), 1, batch=1)
    for maps in outputs:
        for m in maps:
            m.zero_()
    sizes = torch.tensor([[32, 32]])
    assert (select(outputs, sizes, Thresholds(score=0.5))[1] == 0).all(), "σ(0) is not above 0.5"
    assert (select(outputs, sizes, Thresholds(score=0.49))[1] == 0.5).all()


def test_ties_are_all_kept_once_where_there_is_room() -> None:
    outputs = outputs_of((32, 32), 2, batch=1)
    for m in (*outputs.class_logits, *outputs.box_regression, *outputs.centerness):
        m.zero_()
    boxes, scores, classes = select(outputs, torch.tensor([[32, 32]]), Thresholds(score=0.4))
    assert (scores == 0.5).all()
    rows = {(c, *b) for c, b in zip(classes[0].tolist(), boxes[0].tolist(), strict=True)}
    finest = {(c, *b) for c, b in zip(classes[0, :32].tolist(), boxes[0, :32].tolist(), strict=True)}
    assert len(finest) == 32, "every cell and class of the finest level once"
    assert {c for c, *_ in rows} == {0, 1}


def test_a_batch_equals_its_images_one_by_one() -> None:
    outputs, sizes = outputs_of((64, 96), 4, batch=3), torch.tensor([[64, 96], [30, 40], [64, 1]])
    together = select(outputs, sizes, Thresholds())
    for i in range(3):
        single = DenseOutputs(*([m[i : i + 1] for m in maps] for maps in outputs))
        for a, b in zip(together, select(single, sizes[i : i + 1], Thresholds()), strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


def test_wild_deltas_stay_finite_and_on_the_image() -> None:
    outputs = outputs_of((64, 64), 1, batch=1, bias=5.0)
    wild = DenseOutputs(outputs.class_logits, [m * 1e6 for m in outputs.box_regression], outputs.centerness)
    boxes = select(wild, torch.tensor([[50, 60]]), Thresholds())[0]
    assert boxes.isfinite().all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([60.0, 50.0, 60.0, 50.0])).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
