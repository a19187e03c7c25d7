"""What a run will need, estimated before its first step: memory at its largest batch, and time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from runtime.coco import CocoDataset
from runtime.errors import UserError
from runtime.machine.conditions import BUSY, available_memory_gb, busy_share

from ..build import build_criterion
from ..config import Config, Schedule
from ..data.augment import training_hw
from ..data.loader import TrainBatch
from ..data.mosaic import PARTS
from ..data.objects import images_to_train_on
from ..loss.criterion import Targets
from ..model.detector import DetectorNetwork
from .backward import backward
from .compilation import compiles_loss
from .optim import OPTIMIZERS
from .progress import duration
from .step_memory import step_memory

FEWEST_STEPS = 200  # of a run that is worth an estimate
PASSES_PER_STEP = 0.01  # so that the estimate takes a hundredth of the run's time
PASSES = 3  # at most
ROOM = 1.3  # what a step takes over its tensors' memory (benchmarks/training_estimate.py), for the warning


class Run(NamedTuple):
    """A run before its first step, as far as memory and time depend on it."""

    network: DetectorNetwork
    config: Config
    dataset: CocoDataset
    share: int  # images of a batch that each process takes
    processes: int
    device: torch.device
    dtype: torch.dtype
    steps: int  # that are left


def with_estimate(batches: Iterator[TrainBatch], run: Run, say: Callable[[str], None]) -> Iterator[TrainBatch]:
    """The same batches, after lines that estimate the run's memory and time; short runs have none.

    Nothing that the run computes depends on the estimate. Where it fails, one line says so. The first batch is read,
    and raises as `batches` does.
    """
    if run.steps < FEWEST_STEPS:
        return batches
    try:
        for line in memory_lines(run):
            say(line)
        # Before processes of the run's own read images; of several trainings each would count the others.
        others = busy_share() if run.processes == 1 else None
        started = time.perf_counter()
        first = next(batches)
        batches = chain([first], batches)
        say(time_line(run, first, time.perf_counter() - started, others))
    except (UserError, StopIteration):
        raise
    except Exception as error:  # whatever torch raises without memory, or where it can't run the step without numbers
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        say(f"no estimate of memory and time: {reason}")
    return batches


def memory_lines(run: Run) -> list[str]:
    """The line that says how much memory the run needs on its device, and a warning where less is free.

    Weights that are on the device already count too. The process itself, CUDA's context and the workspaces of
    convolutions come on top.
    """
    config, share = run.config, run.share
    indices = images_to_train_on(run.dataset, config.data.keep_empty)
    canvas_hw = largest_canvas(run.dataset.sizes_hw[indices], config)
    boxes = int(np.diff(run.dataset.offsets)[indices].max(initial=1)) * (PARTS if config.augment.mosaic > 0 else 1)
    kept = kept_memory(run.network, config.schedule, run.processes)

    def total(pieces: int) -> int:
        criterion = build_criterion(config.model)
        return kept + step_memory(run.network, criterion, share, canvas_hw, boxes, run.dtype, pieces, run.device.type)

    pieces, free = config.run.accumulate, free_memory(run.device)
    needed = total(pieces)
    where = "GPU" if run.device.type == "cuda" else "machine"
    batch = f"{share} images of at most {canvas_hw[0]}×{canvas_hw[1]}" + (f" in {pieces} pieces" * (pieces > 1))
    lines = [f"estimate: {_size(needed)} of memory for {batch}"]
    if free is not None and ROOM * needed > free:
        fitting = ((more, total(more)) for more in range(pieces + 1, share + 1) if share % more == 0)
        found = next(((more, size) for more, size in fitting if ROOM * size <= free), None)
        advice = (
            f"--run.accumulate {found[0]} needs {_size(found[1])} and gives the same losses"
            if found is not None
            else "single images don't fit: take smaller ones (--augment.short-side-max, --augment.crop)"
        )
        lines.append(f"warning: this {where} has {_size(free)} free; {advice}")
    return lines


def time_line(run: Run, first: TrainBatch, reading_s: float, others: float | None = None) -> str:
    """The line that says how long the run's steps take, measured on its first batch, which took `reading_s` to read.

    A copy of the network runs forward and backward, so that weights, statistics and random numbers of the run stay
    what they are. Evaluations and checkpoints are not in the time, nor reading by processes of its own. `others` is the
    share of the processors' time that other programs use; the line says it where it is large.
    """
    config, device = run.config, run.device
    images, targets = first.images.to(device), Targets(*(tensor.to(device) for tensor in first.targets))
    regions = None if first.regions is None else first.regions.to(device)
    trial, criterion = copy.deepcopy(run.network).train(), build_criterion(config.model)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    passes: list[float] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for _ in range(min(PASSES, max(1, int(PASSES_PER_STEP * run.steps)))):
            started = time.perf_counter()
            backward(trial, criterion, images, targets, config.run.accumulate, run.dtype, scaler, regions=regions)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            passes.append(time.perf_counter() - started)
    seconds = min(passes) + (reading_s if config.data.workers == 0 else 0.0)
    notes = ["evaluations"]
    if config.data.workers > 0:
        notes.append("waiting for images")
    if config.run.compile or compiles_loss(config, device):
        notes.append("compilation")
    busy = "" if others is None or others <= BUSY else f", while other programs use {others:.0%} of the processors"
    return (
        f"estimate: {duration(seconds * run.steps)} for {run.steps} steps of {seconds:.2g} s, "
        f"without {_listed(notes)}{busy}"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def largest_canvas(sizes_hw: np.ndarray, config: Config) -> tuple[int, int]:
    """Height and width of the largest canvas that a batch of images of `sizes_hw` [n, 2] can have in training.

    Batches of mixed orientation occur where images are grouped, too: at the end of an epoch.
    """
    settings, divisor = config.augment, config.preprocess.size_divisor
    height, width = settings.crop
    if settings.crop == (0, 0):
        short_side = max(settings.short_sides or (settings.short_side_max,))
        unique = np.unique(sizes_hw, axis=0).tolist()
        sizes = np.array([training_hw((h, w), short_side, config.preprocess) for h, w in unique])
        height, width = sizes.max(axis=0).tolist()
        if settings.transpose > 0:
            height = width = max(height, width)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def kept_memory(network: DetectorNetwork, schedule: Schedule, processes: int) -> int:
    """Bytes that a run keeps beside weights and gradients.

    These are the optimizer's state, averaged weights, and with several processes the buckets in which
    DistributedDataParallel averages gradients.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in network.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    averaged = sum(size for size, _ in sizes) if schedule.ema > 0 else 0
    return round(trained * _state_per_weight(schedule)) + averaged + (trained if processes > 1 else 0)


def _state_per_weight(schedule: Schedule) -> float:
    """How much larger than the weights the optimizer's state is, as a step of a small one shows."""
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.zeros_like(weight)
    optimizer = OPTIMIZERS[schedule.optimizer]([{"params": [weight]}], schedule)
    optimizer.step()
    state = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() for value in state if value.numel() > 1) / weight.numel()


def free_memory(device: torch.device) -> int | None:
    """Bytes that a training may take on its device; None where that isn't reported."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    available = available_memory_gb()
    return None if available is None else round(available * 1e9)
