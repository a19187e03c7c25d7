"""Rounds over a set of images: each model in turn, stage by stage and then through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..detector import Detector
from ..errors import UserError
from .images import ImageFiles
from .stages import BatchRun, Work, plan_work, run_round


@dataclass
class Measured:
    """The rounds of one model at one batch size."""

    artifact: str  # the model's name in the report
    batch: int
    works: list[Work]  # the batches of a round
    stage_rounds: list[list[BatchRun]]  # stage by stage: the batches of each round
    pipeline_seconds: list[float]  # through the pipeline: each round


def measure(
    detectors: dict[str, Detector],
    image_files: ImageFiles,
    batch: int,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """Run `rounds` rounds of each detector at this batch size; several detectors alternate: A B A B.

    A round takes every image once. `warmup` rounds come first and aren't recorded. `on_round` is called after each
    round. Raises BackendError for a batch or an image that a graph doesn't take.
    """
    files = list(image_files.sizes_hw)
    measured = [
        Measured(name, batch, plan_work(detector, image_files.sizes_hw, batch), [], [])
        for name, detector in detectors.items()
    ]
    for turn in range(-warmup, rounds):
        for found in measured:
            runs = run_round(detectors[found.artifact], found.works, clock)
            if turn >= 0:
                found.stage_rounds.append(runs)
            on_round()
    for turn in range(-warmup, rounds):
        for found in measured:
            started = clock()
            run_pipeline(detectors[found.artifact], files, batch)
            if turn >= 0:
                found.pipeline_seconds.append(clock() - started)
            on_round()
    return measured


def run_pipeline(detector: Detector, files: Sequence[Path], batch: int) -> None:
    """Take every file through decoding, network and postprocessing, as a user's call does. Raises UserError."""
    for result in detector.stream(files, batch, wait_s=None):
        if isinstance(result, UserError):  # an image that was readable before
            raise result
