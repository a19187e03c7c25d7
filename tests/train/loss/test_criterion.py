"""The criterion, assignment included, against loops in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support import reference
from train import config
from train.build import build_criterion
from train.loss.criterion import Losses, Targets
from train.model.detector import DenseOutputs

CANVAS = (64, 96)
SCALE = 4.0
MODEL = config.Model(anchors=config.Anchors(scale=SCALE))
CRITERION = build_criterion(MODEL)
CLASSES = 3


def random_outputs(batch: int, seed: int, spread: float = 1.0, canvas_hw: tuple[int, int] = CANVAS) -> DenseOutputs:
    generator = torch.Generator().manual_seed(seed)
    maps: list[list[Tensor]] = [[], [], []]
    for level in range(5):
        h, w = (-(-side // (8 << level)) for side in canvas_hw)
        for found, channels in zip(maps, (CLASSES, 4, 1), strict=True):
            value = torch.randn(batch, channels, h, w, generator=generator) * spread
            found.append(value.requires_grad_())
    return DenseOutputs(*maps)


def targets_of(boxes: list[list[list[float]]], seed: int = 0) -> Targets:
    """Targets of images with these boxes, padded with boxes that must not count."""
    most = max(1, *(len(b) for b in boxes)) + 1
    padded = torch.tensor([10.0, 10.0, 60.0, 60.0]).repeat(len(boxes), most, 1)
    mask = torch.zeros(len(boxes), most, dtype=torch.bool)
    for i, image in enumerate(boxes):
        padded[i, : len(image)] = torch.tensor(image).reshape(-1, 4)
        mask[i, : len(image)] = True
    labels = torch.randint(0, CLASSES, mask.shape, generator=torch.Generator().manual_seed(seed))
    return Targets(padded, labels, mask)


SCENE = [
    [[4.0, 4.0, 60.0, 50.0], [50.0, 20.0, 96.0, 64.0], [8.0, 30.0, 20.0, 42.0]],
    [],
    [[0.0, 0.0, 96.0, 64.0]],
]


def flat(maps: list[Tensor]) -> Tensor:
    """Anchor order, written out with loops: level, row, column."""
    rows = []
    for m in maps:
        for i in range(m.shape[2]):
            rows += [m[:, :, i, j] for j in range(m.shape[3])]
    return torch.stack(rows, dim=1).double()


def expected_losses(outputs: DenseOutputs, boxes: list[list[list[float]]], targets: Targets) -> tuple[Tensor, ...]:
    anchors = torch.tensor([a for level in reference.anchors_of(CANVAS, 5, SCALE) for a in level], dtype=torch.float64)
    owners = [reference.atss(torch.tensor(image).reshape(-1, 4), CANVAS, 5, SCALE, 9) for image in boxes]
    slow = reference.Losses(
        flat(outputs.class_logits), flat(outputs.box_regression), flat(outputs.centerness)[..., 0], owners, anchors
    )
    focal, box, center, weight, positives = slow.sums(targets.boxes.double(), targets.labels)
    return focal / max(1, positives), 2 * box / max(1e-6, weight), center / max(1, positives)


@pytest.mark.parametrize(
    "boxes",
    [SCENE, [[], []], [[[1.0, 1.0, 2.0, 2.0]], []], [[[12.5, 12.5, 21.0, 21.0]]]],
    ids=["mixed", "empty", "no positive", "one positive far from the centre"],
)
def test_values_and_gradients_equal_loops(boxes: list[list[list[float]]]) -> None:
    targets = targets_of(boxes)
    outputs = random_outputs(len(boxes), seed=1)
    losses = CRITERION(outputs, targets, CANVAS)
    expected = expected_losses(outputs, boxes, targets)
    for found, slow in zip(losses[1:], expected, strict=True):
        assert found.item() == pytest.approx(slow.item(), rel=1e-4, abs=1e-6)
    assert losses.total.item() == pytest.approx(sum(e.item() for e in expected), rel=1e-4)
    leaves = [m for maps in outputs for m in maps]
    ours = torch.autograd.grad(losses.total, leaves)
    theirs = torch.autograd.grad(sum(expected), leaves, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b.float(), atol=1e-5, rtol=1e-3)


def test_the_mixed_scene_has_positives_on_several_levels() -> None:
    owners = [reference.atss(torch.tensor(image).reshape(-1, 4), CANVAS, 5, SCALE, 9) for image in SCENE]
    assert sum(o >= 0 for o in owners[0][:96]) > 0, "on P3"
    assert sum(o >= 0 for image in owners for o in image[96:]) > 0, "and further up"
    assert {o for o in owners[0] if o >= 0} == {0, 1, 2}


@pytest.mark.parametrize("padded", [0, 2])
def test_a_batch_without_boxes_trains_the_background_only(padded: int) -> None:
    """With no padded row at all, and with rows that are all masked."""
    targets = Targets(
        torch.zeros(2, padded, 4), torch.zeros(2, padded, dtype=torch.long), torch.zeros(2, padded, dtype=torch.bool)
    )
    outputs = random_outputs(2, seed=2)
    losses = CRITERION(outputs, targets, CANVAS)
    slow = reference.focal_loss(
        flat(outputs.class_logits).flatten(0, 1), [-1] * (2 * flat(outputs.class_logits).shape[1]), 0.25, 2.0
    )
    assert losses.classification.item() == pytest.approx(slow, rel=1e-5)
    assert losses.box.item() == losses.centerness.item() == 0
    losses.total.backward()
    for maps in outputs[1:]:
        assert all((m.grad == 0).all() for m in maps)


def test_the_batch_is_normalised_as_a_whole() -> None:
    """Sums of the images one by one, joined by their own counts, give the batch."""
    targets, outputs = targets_of(SCENE), random_outputs(3, seed=3)
    together = CRITERION(outputs, targets, CANVAS)
    sums, counts = torch.zeros(3), torch.zeros(3)
    for i in range(3):
        single = DenseOutputs(*([m[i : i + 1] for m in maps] for maps in outputs))
        alone = CRITERION(single, Targets(*(t[i : i + 1] for t in targets)), CANVAS)
        owners = reference.atss(torch.tensor(SCENE[i]).reshape(-1, 4), CANVAS, 5, SCALE, 9)
        anchors = [a for level in reference.anchors_of(CANVAS, 5, SCALE) for a in level]
        quality = [
            reference.centerness(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), SCENE[i][o])
            for a, o in zip(anchors, owners, strict=True)
            if o >= 0
        ]
        weights = torch.tensor([max(1, len(quality)), sum(quality), max(1, len(quality))])
        sums += torch.stack(alone[1:]).detach() * weights
        counts += torch.tensor([len(quality), sum(quality), len(quality)])
    torch.testing.assert_close(torch.stack(together[1:]).detach(), sums / counts, rtol=1e-4, atol=1e-6)


def test_targets_of_other_images_do_not_leak() -> None:
    outputs, targets = random_outputs(3, seed=4), targets_of(SCENE)
    before = CRITERION(outputs, targets, CANVAS)
    gradient = torch.autograd.grad(before.box, outputs.box_regression[0])[0]
    assert (gradient[1] == 0).all(), "the image without boxes"
    assert (gradient[0] != 0).any()


def test_weights_of_the_configuration_scale_their_losses() -> None:
    outputs, targets = random_outputs(3, seed=5), targets_of(SCENE)
    plain = CRITERION(outputs, targets, CANVAS)
    weighted = build_criterion(replace(MODEL, loss=config.Loss(box_weight=6.0, centerness_weight=0.5)))(
        outputs, targets, CANVAS
    )
    assert weighted.box.item() == pytest.approx(3 * plain.box.item())
    assert weighted.centerness.item() == pytest.approx(plain.centerness.item() / 2)
    assert weighted.total.item() == pytest.approx(sum(x.item() for x in weighted[1:]))


def test_a_perfect_prediction_costs_nearly_nothing() -> None:
    """Box and class losses vanish where the network says the truth; centerness keeps the entropy of its target."""
    box = [[16.0, 16.0, 48.0, 48.0]]
    targets = targets_of([box])
    owners = torch.tensor(reference.atss(torch.tensor(box), CANVAS, 5, SCALE, 9))
    anchors = torch.tensor([a for level in reference.anchors_of(CANVAS, 5, SCALE) for a in level])
    side = anchors[:, 2] - anchors[:, 0]
    shift = (torch.tensor([32.0, 32.0]) - (anchors[:, :2] + anchors[:, 2:]) / 2) / side[:, None] / 0.1
    deltas = torch.cat((shift, (32 / side).log()[:, None].expand(-1, 2) / 0.2), dim=1)
    logits = torch.full((len(anchors), CLASSES), -12.0)
    logits[owners >= 0, targets.labels[0, 0]] = 12.0
    outputs = DenseOutputs([], [], [])
    first = 0
    for level in range(5):
        h, w = (-(-s // (8 << level)) for s in CANVAS)
        rows = slice(first, first + h * w)
        outputs.class_logits.append(logits[rows].T.reshape(1, CLASSES, h, w))
        outputs.box_regression.append(deltas[rows].T.reshape(1, 4, h, w))
        outputs.centerness.append(torch.zeros(1, 1, h, w))
        first += h * w
    losses: Losses = CRITERION(outputs, targets, CANVAS)
    assert losses.classification.item() < 1e-4
    assert losses.box.item() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_outputs_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    targets = targets_of([*SCENE, [[5.0, 5.0, 5.5, 5.5]]])
    for logit, delta in ((50.0, 1e4), (-50.0, -1e4), (200.0, 1e6)):
        outputs = random_outputs(4, seed=6)
        outputs = DenseOutputs(
            [(m.detach() * 0 + logit).to(dtype).requires_grad_() for m in outputs.class_logits],
            [(m.detach().sign() * delta).to(dtype).requires_grad_() for m in outputs.box_regression],
            [(m.detach().sign() * logit).to(dtype).requires_grad_() for m in outputs.centerness],
        )
        losses = CRITERION(outputs, targets, CANVAS)
        losses.total.backward()
        assert all(loss.dtype == torch.float32 for loss in losses)
        assert all(loss.isfinite() for loss in losses)
        assert all(m.grad.isfinite().all() for maps in outputs for m in maps)
