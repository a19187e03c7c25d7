"""Takes one batch through a detector and measures each stage.

Every stage begins when the one before has ended, and `Backend.infer` returns arrays in host memory. So both ends of
every stage are synchronised, on a GPU too. The pipeline, whose stages overlap, is measured separately.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from ..batch_settings import resolve_batch
from ..batching import cut, group_by
from ..detections import read_outputs
from ..detector import Detector
from ..images.preprocess import boxes_to_image, join_batches, load
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
    resolve_batch([detector.manifest.inputs], batch)
    groups = group_by(sizes_hw, lambda path: detector.canvas_hw(sizes_hw[path]))
    return [
        Work(tuple(islice(cycle([*piece, *members]), batch)), canvas_hw)
        for canvas_hw, members in groups.items()
        for piece in cut(members, batch)
    ]


def run_batch(detector: Detector, work: Work, clock: Callable[[], float] = time.perf_counter) -> BatchRun:
    """Decode, preprocess, infer and postprocess one batch as the pipeline does, but one stage after the other."""
    stopwatch = Stopwatch(clock)
    started = clock()
    with stopwatch.measure("decode"):
        images = [load(path, detector.load_preprocess, max_pixels=sys.maxsize) for path in work.files]  # found before
    with stopwatch.measure("preprocess"):
        batch = join_batches([detector.prepare(image) for image in images])
    raw = detector.backend.infer(batch.images, batch.image_sizes, stopwatch=stopwatch)
    with stopwatch.measure("postprocess"):
        found = read_outputs(raw, detector.manifest)
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
