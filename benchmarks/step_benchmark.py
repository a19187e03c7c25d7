"""Compares a training step of `atss_r50_fpn_1x` with torchvision's FCOS and RetinaNet, and measures its losses' share.

    python benchmarks/step_benchmark.py [--batch 2] [--side 512] [--json step.json]

The three detectors' steps alternate (A B C A B C …) in one process on the same images and boxes, in float32, with the
same frozen parts (stem, first stage, batch norms) and SGD. Ratios are those of medians. Weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from runtime.files import atomic_write
from train.build import build_criterion, build_detector
from train.config import Config
from train.config.recipes import RECIPES
from train.loss.criterion import Targets
from train.trainer.optim import build_optimizer

CLASSES = 80
BOXES = 7  # per image, COCO's mean
Step = Callable[[], None]


def our_step(images: torch.Tensor, targets: Targets) -> tuple[Step, dict[str, list[float]]]:
    """A function that takes one step of our recipe, and the seconds of the step's parts, which it fills in."""
    recipe: Config = RECIPES["atss_r50_fpn_1x"]()
    backbone = dataclasses.replace(recipe.model.backbone, weights="none")
    model_config = dataclasses.replace(recipe.model, backbone=backbone)
    model = build_detector(model_config, CLASSES, recipe.preprocess).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, recipe.schedule)
    parts: dict[str, list[float]] = {"step": [], "assignment and losses": []}
    canvas_hw = (images.shape[1], images.shape[2])

    def step() -> None:
        started = time.perf_counter()
        outputs = model(images)
        # The losses' own backward pass belongs to their cost: it ends at the network's outputs.
        leaves = type(outputs)(*(maps and [m.detach().requires_grad_() for m in maps] for maps in outputs))
        begun = time.perf_counter()
        build_criterion(model_config)(leaves, targets, canvas_hw).total.backward()
        spent = time.perf_counter() - begun
        optimizer.zero_grad(set_to_none=True)
        pairs = [(m, leaf.grad) for a, b in zip(outputs, leaves, strict=True) for m, leaf in zip(a, b, strict=True)]
        torch.autograd.backward([m for m, _ in pairs], [g for _, g in pairs])
        optimizer.step()
        parts["step"].append(time.perf_counter() - started)
        parts["assignment and losses"].append(spent)

    return step, parts


def their_step(kind: type[FCOS] | type[RetinaNet], images: torch.Tensor, targets: Targets) -> Step:
    """A function that takes one step of a torchvision detector on the same images."""
    side = images.shape[1]
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    pyramid: BackboneWithFPN = _resnet_fpn_extractor(
        body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model: nn.Module = kind(pyramid, CLASSES, min_size=side, max_size=images.shape[2]).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    image_list = list(images.permute(0, 3, 1, 2).float() / 255)
    truth = [{"boxes": b, "labels": c} for b, c in zip(targets.boxes, targets.labels, strict=True)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(model(image_list, truth).values()).backward()
        optimizer.step()

    return step


def random_batch(batch: int, side: int) -> tuple[torch.Tensor, Targets]:
    """Random images [B, side, side, 3] uint8 with BOXES random boxes each."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8))
    sides = np.exp(rng.uniform(np.log(16), np.log(side / 2), (batch, BOXES, 2)))
    low = rng.uniform(0, side - sides)
    boxes = torch.from_numpy(np.concatenate((low, low + sides), axis=-1).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, CLASSES, (batch, BOXES)))
    return images, Targets(boxes, labels, torch.ones(batch, BOXES, dtype=torch.bool))


def main() -> int:
    """Time the three detectors' steps, alternating, and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    images, targets = random_batch(options.batch, options.side)
    ours, parts = our_step(images, targets)
    steps = {
        "atss_r50_fpn_1x": ours,
        "torchvision FCOS R-50": their_step(FCOS, images, targets),
        "torchvision RetinaNet R-50": their_step(RetinaNet, images, targets),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    conditions = {
        "batch": options.batch,
        "side": options.side,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rounds": options.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    reference = medians["atss_r50_fpn_1x"]
    for name, value in medians.items():
        print(f"{name:<28}{options.batch / value:6.2f} images/s{value / reference:7.2f} × our time")
    share = statistics.median(
        part / whole for part, whole in zip(parts["assignment and losses"], parts["step"], strict=True)
    )
    print(f"assignment and losses, their backward pass included: {100 * share:.1f} % of our step")
    if options.json is not None:
        report = {"conditions": conditions, "median_seconds": medians, "share_of_assignment_and_losses": share}
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
