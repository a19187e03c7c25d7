"""Compares a training step of `atss_r50_fpn_1x` with torchvision's FCOS and RetinaNet, and measures its losses' share.

    python benchmarks/step_benchmark.py [--batch 2] [--side 512] [--device cpu] [--precision fp32] [--json step.json]

The three detectors' steps alternate (A B C A B C …) in one process on the same images and boxes, in the same precision,
with the same backbone, the same frozen parts (stem, first stage, batch norms) and SGD. Ratios are those of medians.
Weights are random; the batch norms have the statistics of the images, so that no activation overflows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.alternation import Mark, mark, seconds_between, synchronize, take_turns
from runtime.files import atomic_write
from train.build import build_criterion, build_detector
from train.config import Config
from train.config.recipes import RECIPES
from train.loss.criterion import Criterion, Losses, Targets
from train.trainer.compilation import CompiledCriterion, CompiledNetwork, Compiler
from train.trainer.estimate import kept_memory
from train.trainer.optim import build_optimizer, clip_gradients, learning_rate_factor, set_learning_rate
from train.trainer.step_memory import step_memory

CLASSES = 80
BOXES = 7  # per image, COCO's mean
WARM_UP = 1e-3  # factor of the learning rate, as at a run's start: the weights stay what they were
Step = Callable[[], None]
Compilation = Literal["no", "dynamic canvas", "fixed canvas"]  # a GPU replays a fixed canvas as a CUDA graph


@dataclasses.dataclass(frozen=True)
class Precision:
    """What matrix products are computed in: autocast's dtype, and whether float32 may be TF32 on a GPU."""

    dtype: torch.dtype
    tf32: bool = False


class Backbone(NamedTuple):
    """The backbone of both sides: one of torchvision's ResNets by name, and its weights."""

    name: Literal["resnet50", "resnet18"]
    weights: dict[str, Tensor]


@torch.no_grad()
def random_backbone(images: Tensor, name: Literal["resnet50", "resnet18"] = "resnet50") -> Backbone:
    """A ResNet with random weights, whose batch norms have the statistics of the first image."""
    network = getattr(torchvision.models, name)(weights=None).to(images.device).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network((images[:1].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25)
    return Backbone(name, {key: value.cpu() for key, value in network.state_dict().items()})


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
}


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products inside."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings")  # some versions warn of these names
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = allowed
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value


class OurStep:
    """A step of our recipe as the trainer takes it, with the losses' backward pass apart, so that it can be timed.

    `loss` is the last step's, `problems` the messages of the compiler, torch.compile's `backend`.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Targets,
        precision: Precision,
        backbone: Backbone,
        compilation: Compilation = "no",
        backend: str = "inductor",
    ) -> None:
        recipe: Config = RECIPES["atss_r50_fpn_1x"]()
        without = dataclasses.replace(recipe.model.backbone, name=backbone.name, weights="none")
        config = dataclasses.replace(recipe.model, backbone=without)
        device = images.device
        model = build_detector(config, CLASSES, recipe.preprocess)
        missing, _ = model.backbone.load_state_dict(backbone.weights, strict=False)
        assert not missing
        model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.problems: list[str] = []
        self.network: nn.Module = model
        self.criterion: Criterion | CompiledCriterion = build_criterion(config)
        if compilation != "no":
            compiler, fixed = Compiler(self.problems.append, backend), compilation == "fixed canvas"
            self.network = CompiledNetwork(model, compiler, fixed, fixed and device.type == "cuda")
            self.criterion = CompiledCriterion(build_criterion(config), compiler, fixed)
        self._optimizer = build_optimizer(model, recipe.schedule)
        set_learning_rate(self._optimizer, learning_rate_factor(0, recipe.schedule))
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._clip = recipe.schedule.clip_norm
        self._model, self._config, self._schedule = model, config, recipe.schedule
        self.images, self.targets, self._precision = images, targets, precision
        self._marks: list[tuple[Mark, ...]] = []
        self.loss = torch.zeros(())

    def __call__(self) -> None:
        """Take a step; the host doesn't wait for it."""
        device, dtype, targets = self.images.device, self._precision.dtype, self.targets
        canvas_hw = (self.images.shape[1], self.images.shape[2])
        with tf32(self._precision.tf32):
            started = mark(device)
            self._optimizer.zero_grad(set_to_none=True)
            assigned = self.criterion.assign(targets, canvas_hw)
            assigned_at = mark(device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                outputs = self.network(self.images)
            # The losses' own backward pass belongs to their cost: it ends at the network's outputs.
            leaves = type(outputs)(*(maps and [m.detach().requires_grad_() for m in maps] for maps in outputs))
            begun = mark(device)
            losses: Losses = self.criterion(leaves, targets, canvas_hw, None, assigned)
            self._scaler.scale(losses.total).backward()
            ended = mark(device)
            pairs = [(m, leaf.grad) for a, b in zip(outputs, leaves, strict=True) for m, leaf in zip(a, b, strict=True)]
            torch.autograd.backward([m for m, _ in pairs], [g for _, g in pairs])
            self._scaler.unscale_(self._optimizer)
            clip_gradients(self._parameters, self._clip)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._marks.append((started, assigned_at, begun, ended, mark(device)))
        self.loss = losses.total.detach()

    def predicted_bytes(self) -> int:
        """The memory that a run's estimate before its first step says this step needs, not compiled."""
        images, height, width, _ = self.images.shape
        boxes, criterion = self.targets.boxes.shape[1], build_criterion(self._config)
        dtype, device = self._precision.dtype, self.images.device.type
        step = step_memory(self._model, criterion, images, (height, width), boxes, dtype, device=device)
        return step + kept_memory(self._model, self._schedule, processes=1)

    def share(self) -> float:
        """The share of assignment and losses, their backward pass included, in a step: the median of all but two."""
        synchronize(self.images.device)
        shares = []
        for started, assigned_at, begun, ended, done in self._marks[2:] or self._marks:
            spent = seconds_between(started, assigned_at) + seconds_between(begun, ended)
            shares.append(spent / seconds_between(started, done))
        return statistics.median(shares)


def their_step(
    kind: type[FCOS] | type[RetinaNet],
    images: Tensor,
    targets: Targets,
    precision: Precision,
    backbone: Backbone,
    channels_last: bool = False,
) -> Step:
    """A function that takes one step of a torchvision detector on the same images, as its reference script does."""
    device, dtype = images.device, precision.dtype
    body = getattr(torchvision.models, backbone.name)(weights=None, norm_layer=FrozenBatchNorm2d)
    body.load_state_dict(backbone.weights)
    pyramid: BackboneWithFPN = _resnet_fpn_extractor(
        body, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    sides = images.shape[1:3]
    model: nn.Module = kind(pyramid, CLASSES, min_size=min(sides), max_size=max(sides)).to(device).train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01 * WARM_UP, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    image_list = list(images.permute(0, 3, 1, 2).float() / 255)
    truth = [{"boxes": b, "labels": c} for b, c in zip(targets.boxes, targets.labels, strict=True)]

    def step() -> None:
        with tf32(precision.tf32):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = sum(model(image_list, truth).values())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return step


def random_batch(
    batch: int, canvas_hw: tuple[int, int], device: torch.device, boxes: int = BOXES
) -> tuple[Tensor, Targets]:
    """Random images [B, H, W, 3] uint8 with some random boxes each, on the device."""
    rng = np.random.default_rng(0)
    height, width = canvas_hw
    images = torch.from_numpy(rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8))
    bound = np.array([width, height])
    sides = np.exp(rng.uniform(np.log(16), np.log(bound / 2), (batch, boxes, 2)))
    low = rng.uniform(0, bound - sides)
    corners = torch.from_numpy(np.concatenate((low, low + sides), axis=-1).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, CLASSES, (batch, boxes)))
    targets = Targets(corners, labels, torch.ones(batch, boxes, dtype=torch.bool))
    return images.to(device), Targets(*(t.to(device) for t in targets))


def main() -> int:
    """Time the three detectors' steps, alternating, and print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    device, precision = torch.device(options.device), PRECISIONS[options.precision]
    images, targets = random_batch(options.batch, (options.side, options.side), device)
    backbone = random_backbone(images)
    ours = OurStep(images, targets, precision, backbone)
    steps: dict[str, Step] = {
        "atss_r50_fpn_1x": ours,
        "torchvision FCOS R-50": their_step(FCOS, images, targets, precision, backbone),
        "torchvision RetinaNet R-50": their_step(RetinaNet, images, targets, precision, backbone),
    }
    seconds = take_turns(steps, device, options.rounds)
    processor = platform.processor() or platform.machine()
    conditions = {
        "batch": options.batch,
        "side": options.side,
        "precision": options.precision,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else processor,
        "cores": os.cpu_count(),
        "rounds": options.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    reference = medians["atss_r50_fpn_1x"]
    for name, value in medians.items():
        print(f"{name:<28}{options.batch / value:6.2f} images/s{value / reference:7.2f} × our time")
    share = ours.share()
    print(f"assignment and losses, their backward pass included: {100 * share:.1f} % of our step")
    if options.json is not None:
        report = {"conditions": conditions, "median_seconds": medians, "share_of_assignment_and_losses": share}
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
