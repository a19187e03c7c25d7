"""Takes one batch through a detector and measures each stage.

Every stage begins when the one before has ended, and `Backend.infer` returns arrays in host memory. So both ends of
every stage are synchronised, on a GPU too. The pipeline, whose stages overlap, is measured separately.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..detections import finish
from ..detector import Detector, chosen_batch, join_batches
from ..images.preprocess import boxes_to_image, load
from ..stopwatch import STAGES, Stage, Stopwatch


@dataclass(frozen=True)
class Work:
    """One batch: files of images that share a canvas size."""

    files: tuple[Path, ...]
    canvas_hw: tuple[int, int]


@dataclass(frozen=True)
class BatchRun:
    """One batch that was taken through all stages."""

    seconds: dict[Stage, float]  # by stage; 0 for a stage that the backend lacks
    wall: float  # seconds from the start of the first stage to the end of the last
    detections: int
    reruns: int  # images whose NMS ran on the host

    @property
    def rest(self) -> float:
        """Seconds outside the stages: checks, and backend time that no stage includes."""
        return self.wall - sum(self.seconds.values())


def plan_work(detector: Detector, sizes_hw: dict[Path, tuple[int, int]], batch: int) -> list[Work]:
    """Full batches of images that share a canvas size. Every image occurs at least once.

    Where the images of a canvas size don't fill the last batch, the first ones are repeated. Raises BackendError for a
    batch or an image that the graph doesn't take.
    """
    chosen_batch([detector.manifest.inputs], batch)
    groups: dict[tuple[int, int], list[Path]] = {}
    for path, size_hw in sizes_hw.items():
        groups.setdefault(detector.canvas_hw(size_hw), []).append(path)
    return [
        Work(tuple(members[index % len(members)] for index in range(first, first + batch)), canvas_hw)
        for canvas_hw, members in groups.items()
        for first in range(0, len(members), batch)
    ]


def run_batch(detector: Detector, work: Work, clock: Callable[[], float] = time.perf_counter) -> BatchRun:
    """Decode, preprocess, infer and postprocess one batch as the pipeline does, but one stage after the other."""
    stopwatch = Stopwatch(clock)
    started = clock()
    with stopwatch.measure("decode"):
        images = [load(path, detector.loads_for) for path in work.files]
    with stopwatch.measure("preprocess"):
        batch = join_batches([detector.prepare(image) for image in images])
    raw = detector.backend.infer(batch.images, batch.image_sizes, stopwatch=stopwatch)
    with stopwatch.measure("postprocess"):
        found = finish(raw, detector.manifest.thresholds)
        for detections, geometry in zip(found, batch.geometries, strict=True):
            boxes_to_image(detections.boxes, geometry)
    wall = clock() - started
    seconds = {stage: stopwatch.seconds.get(stage, 0.0) for stage in STAGES}
    reruns = int((raw.nms_exact == 0).sum())
    return BatchRun(seconds, wall, sum(map(len, found)), reruns)


def run_round(
    detector: Detector, works: Sequence[Work], clock: Callable[[], float] = time.perf_counter
) -> list[BatchRun]:
    """Run all batches of a round, one after the other."""
    return [run_batch(detector, work, clock) for work in works]
