"""The paper's systems against loops in float64: criterion and candidates. `test_command_line` trains a step of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from runtime.errors import UserError
from runtime.manifest import Thresholds
from tests.support import reference
from tests.train.loss.test_criterion import SCENE, targets_of
from train import config
from train.__main__ import parse
from train.assign import build_assigner
from train.build import build_criterion, build_postprocess
from train.config.paper_recipes import SYSTEMS
from train.config.recipes import RECIPES
from train.geometry.anchors import anchors_per_cell, grid_anchors, pyramid_levels
from train.geometry.box_coder import decode, encode
from train.loss.criterion import Targets
from train.model.detector import DenseOutputs
from train.model.postprocess import select_candidates

CANVAS = (64, 96)
CLASSES = 3


def test_recipes_are_named_as_they_are_found() -> None:
    assert all(RECIPES[name]().recipe == name for name in RECIPES)
    assert set(SYSTEMS) <= set(RECIPES)
    assert all(SYSTEMS[name].__doc__ for name in SYSTEMS)
    models = [SYSTEMS[name]().model for name in SYSTEMS]
    assert all(a != b for i, a in enumerate(models) for b in models[:i]), "no two systems are the same"


def random_outputs(model: config.Model, batch: int, seed: int) -> DenseOutputs:
    generator = torch.Generator().manual_seed(seed)
    per_cell = anchors_per_cell(model.anchors)
    maps: list[list[Tensor]] = [[], [], []]
    for level in range(5):
        h, w = (-(-side // (8 << level)) for side in CANVAS)
        for found, channels in zip(maps, (CLASSES, 4, 1), strict=True):
            found.append(torch.randn(batch, per_cell * channels, h, w, generator=generator).requires_grad_())
    return DenseOutputs(maps[0], maps[1], maps[2] if model.head.centerness != "none" else [])


def rows_of(maps: list[Tensor], per_cell: int) -> Tensor:
    """[B, N, channels] float64 in anchor order, written out with loops: level, row, column, anchor."""
    rows = []
    for m in maps:
        channels = m.shape[1] // per_cell
        for i in range(m.shape[2]):
            for j in range(m.shape[3]):
                rows += [m[:, a * channels : (a + 1) * channels, i, j] for a in range(per_cell)]
    return torch.stack(rows, dim=1).double()


def plain_box(anchor: Tensor, code: Tensor, stride: float, rule: config.Regression) -> list[Tensor]:
    """The box of one code, from the papers' formulas."""
    if rule.start == "box":
        w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
        x = (anchor[0] + anchor[2]) / 2 + code[0] * rule.delta_std[0] * w
        y = (anchor[1] + anchor[3]) / 2 + code[1] * rule.delta_std[1] * h
        w, h = w * torch.exp(rule.delta_std[2] * code[2]), h * torch.exp(rule.delta_std[3] * code[3])
        return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    unit = stride if rule.distance_unit == "stride" else 1.0
    d = (torch.exp(code) if rule.distance == "exp" else torch.relu(code)) * unit
    return [x - d[0], y - d[1], x + d[2], y + d[3]]


def plain_code(anchor: Tensor, box: Tensor, std: tuple[float, ...]) -> Tensor:
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / w
    y = ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / h
    return torch.stack((x, y, ((box[2] - box[0]) / w).log(), ((box[3] - box[1]) / h).log())) / torch.tensor(std)


def plain_losses(outputs: DenseOutputs, targets: Targets, model: config.Model) -> tuple[Tensor, Tensor, Tensor]:
    """Classification, box and centerness losses of a system, anchor by anchor in float64."""
    levels = pyramid_levels(CANVAS, 5, model.anchors)
    per_cell = len(levels[0].sides)
    anchors = grid_anchors(levels).double()
    strides = [float(v.stride) for v in levels for _ in range(v.anchors)]
    assigned = build_assigner(model.assignment)(targets.boxes, targets.mask, levels)
    logits, codes = rows_of(outputs.class_logits, per_cell), rows_of(outputs.box_regression, per_cell)
    center = rows_of(outputs.centerness, per_cell)[..., 0] if outputs.centerness else None
    zero = torch.zeros((), dtype=torch.float64)
    box_loss, center_loss, weight, positives = zero, zero, 0.0, 0
    one_hot = torch.zeros_like(logits)
    counts = torch.ones(logits.shape[:2], dtype=torch.float64)
    for b in range(len(logits)):
        for n, owner in enumerate(assigned.matched[b].tolist()):
            if owner < 0:
                counts[b, n] = assigned.ignored is None or not assigned.ignored[b, n]
                continue
            one_hot[b, n, targets.labels[b, owner]] = 1
            anchor, box = anchors[n], targets.boxes[b, owner].double()
            if model.loss.box == "smooth_l1":
                size = (codes[b, n] - plain_code(anchor, box, model.regression.delta_std)).abs()
                beta = model.loss.smooth_l1_beta
                loss = torch.where(size < beta, size**2 / (2 * beta), size - beta / 2).sum()
            else:
                predicted = plain_box(anchor, codes[b, n], strides[n], model.regression)
                giou = reference.giou64(predicted, box)
                loss = 1 - giou
                if model.loss.box == "iou":
                    overlap = reference.iou([float(v.detach()) for v in predicted], box.tolist())
                    loss = -torch.tensor(max(overlap, 1e-6), dtype=torch.float64).log()
            quality = 1.0
            if center is not None:
                point = [float(anchor[0] + anchor[2]) / 2, float(anchor[1] + anchor[3]) / 2]
                quality, x = reference.centerness(point, box.tolist()), center[b, n]
                center_loss = center_loss - quality * torch.sigmoid(x).log() - (1 - quality) * torch.sigmoid(-x).log()
            box_loss, weight, positives = box_loss + quality * loss, weight + quality, positives + 1
    focal = (sigmoid_focal_loss(logits, one_hot, 0.25, 2.0) * counts.unsqueeze(-1)).sum()
    count = max(1, positives)
    box_loss = model.loss.box_weight * box_loss / (max(weight, 1e-6) if center is not None else count)
    return focal / count, box_loss, center_loss / count


@pytest.mark.parametrize(
    ("name", "boxes"),
    [(name, SCENE) for name in SYSTEMS if "101" not in name and "dcn" not in name]
    + [(name, [[], []]) for name in ("fcos_r50_fpn_1x", "retinanet_r50_fpn_1x")],
)
def test_losses_and_gradients_equal_loops(name: str, boxes: list[list[list[float]]]) -> None:
    model = SYSTEMS[name]().model
    targets, outputs = targets_of(boxes), random_outputs(model, len(boxes), seed=3)
    losses = build_criterion(model)(outputs, targets, CANVAS)
    expected = plain_losses(outputs, targets, model)
    for found, slow in zip(losses[1:], expected, strict=True):
        assert found.item() == pytest.approx(slow.item(), rel=1e-4, abs=1e-6)
    leaves = [m for maps in outputs for m in maps]
    ours = torch.autograd.grad(losses.total, leaves, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(sum(expected), leaves, allow_unused=True, materialize_grads=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), atol=1e-5, rtol=1e-3)


def test_iou_loss_is_the_negative_logarithm() -> None:
    model = replace(config.Model(), loss=config.Loss(box="iou"))
    targets, outputs = targets_of(SCENE), random_outputs(model, 3, seed=4)
    assert build_criterion(model)(outputs, targets, CANVAS).box.item() == pytest.approx(
        plain_losses(outputs, targets, model)[1].item(), rel=1e-4
    )


RULES = [
    config.Regression(),
    config.Regression(start="point"),
    config.Regression(start="point", distance="relu"),
    config.Regression(start="point", distance_unit="pixel"),
]


@pytest.mark.parametrize("rule", RULES)
def test_decoding_undoes_encoding(rule: config.Regression) -> None:
    levels = pyramid_levels(CANVAS, 2, config.Anchors(4.0))
    anchors = grid_anchors(levels)
    strides = torch.cat([torch.full((v.anchors,), float(v.stride)) for v in levels])
    boxes = torch.tensor([-200.0, -150.0, 300.0, 250.0]).expand(len(anchors), 4)  # every point is inside
    codes = encode(anchors, strides, boxes, rule)
    torch.testing.assert_close(decode(anchors, strides, codes, rule), boxes, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("scoring", [config.Scoring(c, t, r) for c in ("sqrt", "product") for t in ("class", "final")
                                     for r in ("final", "class")])  # fmt: skip
@pytest.mark.parametrize("name", ["retinanet_r50_fpn_1x", "fcos_r50_fpn_1x", "atss_r3_r50_fpn_1x"])
def test_candidates_equal_loops(name: str, scoring: config.Scoring) -> None:
    model = replace(SYSTEMS[name]().model, scoring=scoring)
    outputs = DenseOutputs(*([m.detach() for m in maps] for maps in random_outputs(model, 1, seed=5)))
    thresholds = Thresholds(score=0.3, candidates_per_level=40)
    with torch.no_grad():
        boxes, scores, classes = select_candidates(
            outputs, torch.tensor([[60, 90]]), build_postprocess(model, thresholds)
        )
    levels = pyramid_levels(CANVAS, 5, model.anchors)
    per_cell, first, found = len(levels[0].sides), 0, 0
    anchors = grid_anchors(levels).double()
    for i, level in enumerate(levels):
        one = DenseOutputs(*(maps[i : i + 1] for maps in outputs))
        p = rows_of(one.class_logits, per_cell)[0].sigmoid()
        codes = rows_of(one.box_regression, per_cell)[0]
        final = p
        if outputs.centerness:
            final = p * rows_of(one.centerness, per_cell)[0].sigmoid()
            final = final.sqrt() if scoring.combine == "sqrt" else final
        cut, rank = (p if scoring.threshold_on == "class" else final), (p if scoring.rank_by == "class" else final)
        rows = [(float(rank[n, c]), n, c) for n in range(len(p)) for c in range(CLASSES) if cut[n, c] > 0.3]
        best = sorted(rows, reverse=True)[:40]
        count = min(40, p.numel())
        for row, (_, n, c) in enumerate(best, start=found):
            box = plain_box(anchors[first + n], codes[n], float(level.stride), model.regression)
            clipped = [min(max(float(v), 0), bound) for v, bound in zip(box, (90, 60, 90, 60), strict=True)]
            assert scores[0, row].item() == pytest.approx(float(final[n, c]), rel=1e-4)
            assert classes[0, row] == c
            assert boxes[0, row].tolist() == pytest.approx(clipped, abs=1e-2)
        assert (scores[0, found + len(best) : found + count] == 0).all()
        found, first = found + count, first + level.anchors
    assert found == scores.shape[1]


def test_sweeps_need_no_code() -> None:
    """k, anchor scale and ratios from the command line; what can't work is refused by name."""
    base = ["atss_r50_fpn_1x", "--out", "runs/sweep"]
    for k in (3, 19):
        assert parse([*base, "--model.assignment.k", str(k)])[0].model.assignment.k == k
    found, _ = parse([*base, "--model.anchors.scale", "5", "--model.anchors.ratios", "0.25", "1", "4"])
    assert (found.model.anchors.scale, found.model.anchors.ratios) == (5.0, (0.25, 1.0, 4.0))
    levels = pyramid_levels(CANVAS, 5, found.model.anchors)
    assert levels[0].sides == ((80.0, 20.0), (40.0, 40.0), (20.0, 80.0))
    with pytest.raises(UserError, match=r"model\.anchors\.ratios"):
        parse([*base, "--model.anchors.ratios", "-1"])
    with pytest.raises(UserError, match=r"model\.loss\.box"):
        parse(["fcos_r50_fpn_1x", "--out", "runs/sweep", "--model.loss.box", "smooth_l1"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_takes_every_recipe(name: str) -> None:
    assert parse([name, "--out", "runs/any"])[0] == RECIPES[name]()
