"""What each process of `test_distributed.py` runs: python -m tests.support.ranks SETTINGS.json OUT.

Process 0 leaves `answers.json` in OUT.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from runtime.coco import load_coco
from runtime.detector import Detector as RuntimeDetector
from runtime.errors import UserError, run_main
from runtime.records import record_from_dict
from train.build import build_training_batches
from train.checkpoint import load_detector
from train.config import Config
from train.loss.criterion import Criterion, Losses
from train.trainer import backward, loop
from train.trainer.distributed import World, all_gather, all_reduce, process_group, require_agreement
from train.trainer.evaluation import TorchBackend, evaluate_distributed
from train.trainer.loop import LAST, train_detector


def main() -> None:
    torch.set_num_threads(1)
    config, out = record_from_dict(Config, json.loads(Path(sys.argv[1]).read_text()), "test"), Path(sys.argv[2])
    with process_group(use_cuda=False) as world:
        answers = work(config, out, world)
        if world.is_main:
            (out / "answers.json").write_text(json.dumps(answers))


def work(config: Config, out: Path, world: World) -> dict[str, Any]:
    """Everything that goes well, or fails in all processes alike, in one go: starting a process takes seconds."""
    train_detector(config, out / "two", world=world)
    with patched(interrupted_at(config.schedule.steps * 3 // 5)):
        message(lambda: train_detector(config, out / "cut", world=world))
    train_detector(config, out / "cut", resume=True, world=world)
    train_detector(replace(config, run=replace(config.run, accumulate=2)), out / "pieces", world=world)
    for name, defect in DEFECTS.items():
        with defect(world):
            train_detector(replace(config, run=replace(config.run, accumulate=2)), out / name, world=world)
    with patched(nan_at(1, rank=1, world=world)):
        bad_loss = message(lambda: train_detector(config, out / "nan", world=world))
    still = replace(config.schedule, patience=2, learning_rate=1e-12)  # no evaluation is better than the first
    stopping = replace(config, schedule=still, run=replace(config.run, evaluate_every=1, evaluate_limit=0))
    stopped = train_detector(stopping, out / "stopped", world=world)
    loaded = load_detector(out / "two" / LAST)
    dataset = load_coco(config.data.val_json, config.data.val_images)
    detector = RuntimeDetector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
    evaluation = evaluate_distributed(detector, dataset, world, batch=2, progress=False)
    return {
        "bad loss": all_gather(bad_loss, world),
        "stopped": all_gather(stopped.steps, world),
        "disagree": all_gather(message(lambda: require_agreement({"the weather": f"day {world.rank}"}, world)), world),
        "figures": evaluation.metrics.values,
        "everyone's figures": all_gather(evaluation.metrics.values, world),
        "results": list(evaluation.results),
        "images": evaluation.speed.images,
    }


def message(function: Callable[[], Any]) -> str:
    try:
        function()
    except (UserError, KeyboardInterrupt) as error:
        return str(error)
    return ""


class patched:
    """The losses of every call of a criterion changed while a block runs."""

    def __init__(self, change: Callable[[int, Losses], Losses]) -> None:
        self.change = change

    def __enter__(self) -> None:
        self.real, calls = Criterion.__call__, iter(range(10_000))
        Criterion.__call__ = lambda *args: self.change(next(calls), self.real(*args))

    def __exit__(self, *_: object) -> None:
        Criterion.__call__ = self.real


def interrupted_at(step: int) -> Callable[[int, Losses], Losses]:
    def change(call: int, losses: Losses) -> Losses:
        if call == step:
            raise KeyboardInterrupt
        return losses

    return change


@contextmanager
def replaced(name: str, change: Callable[..., Any], caller: ModuleType = loop) -> Iterator[None]:
    """A function that the loop, or another module, calls replaced while a block runs."""
    real = getattr(caller, name)
    setattr(caller, name, change)
    yield
    setattr(caller, name, real)


def _own_counts(world: World) -> AbstractContextManager[None]:
    """Each process divides by its own counts, as if they were everyone's."""
    return replaced("all_reduce", lambda values, world: values * world.size, backward)


def _counts_of_one(world: World) -> AbstractContextManager[None]:
    """All processes divide by the first one's counts."""

    def wrong(values: Tensor, world: World) -> Tensor:
        return all_reduce(values * (world.size if world.is_main else 0), world)

    return replaced("all_reduce", wrong, backward)


def _own_gradients(world: World) -> AbstractContextManager[None]:
    """Each process steps by its own gradients."""
    return replaced("data_parallel", lambda model, *_, **__: model)


def _last_pieces_gradients(world: World) -> AbstractContextManager[None]:
    """What a process gathered in the first piece is not averaged."""
    return patched(lambda call, losses: losses._replace(total=losses.total * (call % 2)))


def _same_images(world: World) -> AbstractContextManager[None]:
    """All processes read the first one's share: its images count twice, the others' not at all."""
    return replaced("build_training_batches", lambda *args: build_training_batches(*args[:-1], 0))


DEFECTS = {
    "counts of each process by itself": _own_counts,
    "counts of the first process alone": _counts_of_one,
    "gradients that are not averaged": _own_gradients,
    "gradients of the last piece alone": _last_pieces_gradients,
    "the same images in each process": _same_images,
}


def nan_at(step: int, rank: int, world: World) -> Callable[[int, Losses], Losses]:
    def bad(loss: Tensor) -> Tensor:
        return loss * math.nan

    return lambda call, losses: (
        losses._replace(total=bad(losses.total)) if call == step and world.rank == rank else losses
    )


if __name__ == "__main__":
    run_main(main)
