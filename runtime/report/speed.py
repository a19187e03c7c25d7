"""Measures how long each stage of detecting takes, in a short run on images of the data set."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from ..benchmark.stages import BatchRun, Work, plan_work, run_round
from ..coco import CocoDataset
from ..coco.run import Speed, turn_order
from ..detector import Detector
from ..machine.conditions import Machine
from ..stopwatch import STAGES
from .content import SpeedFacts, StageTime

BATCHES = 2  # of images in a round
MOST_ROUNDS = 5
MOST_SECONDS = 10.0  # no round begins after these


def measure_stages(
    detectors: Sequence[Detector], dataset: CocoDataset, image_ids: Sequence[int], batch: int, machine: Machine
) -> list[SpeedFacts]:
    """Time by stage of each detector, one stage after the other, on a few images that can be read.

    The detectors take turns round by round. They have run before on images of all canvases. `machine` is described
    before they did. Raises BackendError as `plan_work`.
    """
    places = {image_id: place for place, image_id in enumerate(dataset.image_ids.tolist())}
    spread = np.unique(np.linspace(0, len(image_ids) - 1, min(len(image_ids), BATCHES * batch)).astype(int))
    indices = [places[image_ids[number]] for number in spread.tolist()]
    sizes_hw = {dataset.path(index): dataset.size_hw(index) for index in indices}
    works = [plan_work(detector, sizes_hw, batch) for detector in detectors]
    runs: list[list[BatchRun]] = [[] for _ in detectors]
    started, rounds = time.perf_counter(), 0
    while rounds < MOST_ROUNDS and (rounds == 0 or time.perf_counter() - started < MOST_SECONDS):
        for number in turn_order(len(detectors), rounds):
            runs[number] += run_round(detectors[number], works[number])
        rounds += 1
    return [
        _facts(detector, own, planned, batch, f"{rounds} rounds of {len(indices)} images", machine)
        for detector, own, planned in zip(detectors, runs, works, strict=True)
    ]


def _facts(
    detector: Detector, runs: Sequence[BatchRun], works: Sequence[Work], batch: int, rounds: str, machine: Machine
) -> SpeedFacts:
    stages = [
        _stage_time(stage, [run.seconds[stage] for run in runs], batch)
        for stage in STAGES
        if any(run.seconds[stage] > 0 for run in runs)
    ]
    canvases = dict.fromkeys(f"{work.canvas_hw[1]}×{work.canvas_hw[0]}" for work in works)
    busy = "unknown" if machine.busy_share is None else f"{100 * machine.busy_share:.0f} % of the processors' time"
    conditions = {
        "backend": detector.backend.description,
        "processor": machine.cpu,
        "usable processors": str(machine.usable_processors),
        "batch": str(batch),
        "canvases": ", ".join(canvases),
        "measured": f"{rounds}, one stage after the other; models in turn",
        "other work before": busy,
    }
    wall = [run.wall for run in runs]
    return SpeedFacts(tuple(stages), batch * len(runs) / sum(wall) if sum(wall) > 0 else None, conditions)


def speed_of_evaluation(speed: Speed, backend: str) -> SpeedFacts:
    """What an evaluation itself measured: the time of the network's calls."""
    per_image = speed.seconds_per_image
    stages = (_stage_time("network", per_image, 1),) if per_image else ()
    conditions = {
        "backend": backend or "unknown",
        "measured": "during the evaluation: the network's calls, copies included; images/s of the whole run, in which "
        "stages overlap",
    }
    return SpeedFacts(stages, speed.images_per_second or None, conditions)


def _stage_time(name: str, seconds: Sequence[float], batch: int) -> StageTime:
    ms = [1e3 * value / batch for value in seconds]
    return StageTime(name, statistics.median(ms), float(np.percentile(ms, 90)))
