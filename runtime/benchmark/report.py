"""What a benchmark found, as data: per artifact and batch size, per pair, and the conditions of it all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..machine.conditions import Machine, ModelInfo, Run
from ..machine.gpu_watch import GpuReport
from ..stopwatch import STAGES
from .images import ImageSet
from .measuring import Distribution, distribution, speed_ratios
from .rounds import Measured

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Figures:
    """Of one artifact at one batch size."""

    artifact: str
    batch: int
    canvases: dict[str, int]  # batches per round, by canvas
    stage_ms: dict[str, Distribution]  # per batch, by stage; "rest" lies between them, "total" is the whole
    stage_images_per_second: dict[str, float]  # images by that stage's seconds; stages without any time left out
    detections_per_image: float
    nms_reruns: int  # images whose NMS ran on the host, in all rounds
    serial_images_per_second: Distribution  # over rounds, one stage after another
    pipeline_images_per_second: Distribution  # over rounds
    serial_round_seconds: tuple[float, ...]  # each round, one stage after another
    pipeline_round_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Memory:
    """The process' most at once while artifacts were open, and what it held before; megabytes, None: not known."""

    artifacts: tuple[str, ...]
    before_mb: float | None
    peak_mb: float | None


@dataclass(frozen=True)
class Pair:
    """How many times as fast `artifact` is as `base`, by neighbouring rounds."""

    base: str
    artifact: str
    batch: int
    serial: Distribution  # all stages, one after another
    infer: Distribution
    pipeline: Distribution


@dataclass(frozen=True)
class Settings:
    batches: tuple[int, ...]
    rounds: int
    warmup_rounds: int  # at each batch size, not counted
    alternating: bool


@dataclass(frozen=True)
class Report:
    run: Run
    machine: Machine
    artifacts: tuple[ModelInfo, ...]
    images: ImageSet
    settings: Settings
    figures: tuple[Figures, ...]
    memory: tuple[Memory, ...]
    pairs: tuple[Pair, ...]
    gpu: GpuReport | None


def figures(measured: Measured, image_count: int) -> Figures:
    """Figures of what was measured on so many images."""
    runs = [run for rounds in measured.stage_rounds for run in rounds]
    samples: dict[str, list[float]] = {stage: [1e3 * run.seconds[stage] for run in runs] for stage in STAGES}
    samples |= {"rest": [1e3 * run.rest for run in runs], "total": [1e3 * run.wall for run in runs]}
    images = len(runs) * measured.batch
    return Figures(
        artifact=measured.artifact,
        batch=measured.batch,
        canvases=dict(Counter(f"{work.canvas_hw[1]}×{work.canvas_hw[0]}" for work in measured.works).most_common()),
        stage_ms={stage: distribution(values) for stage, values in samples.items()},
        stage_images_per_second={
            stage: 1e3 * images / sum(samples[stage]) for stage in (*STAGES, "total") if sum(samples[stage]) > 0
        },
        detections_per_image=sum(run.detections for run in runs) / images,
        nms_reruns=sum(run.reruns for run in runs),
        serial_images_per_second=distribution(
            [measured.batch * len(runs) / sum(run.wall for run in runs) for runs in measured.stage_rounds]
        ),
        pipeline_images_per_second=distribution([image_count / seconds for seconds in measured.pipeline_seconds]),
        serial_round_seconds=tuple(sum(run.wall for run in runs) for runs in measured.stage_rounds),
        pipeline_round_seconds=tuple(measured.pipeline_seconds),
    )


def pairs(measured: Sequence[Measured]) -> list[Pair]:
    """Ratios of each artifact's rounds to the first one's. The rounds must have alternated."""

    # Per batch: where the artifacts' canvases differ, a round of one may have more batches, filled up, than another's.
    def infer_seconds(found: Measured) -> list[float]:
        return [sum(run.seconds["infer"] for run in runs) / len(runs) for runs in found.stage_rounds]

    def serial_seconds(found: Measured) -> list[float]:
        return [sum(run.wall for run in runs) / len(runs) for runs in found.stage_rounds]

    base, *others = measured
    return [
        Pair(
            base.artifact,
            other.artifact,
            other.batch,
            serial=speed_ratios(serial_seconds(base), serial_seconds(other)),
            infer=speed_ratios(infer_seconds(base), infer_seconds(other)),
            pipeline=speed_ratios(base.pipeline_seconds, other.pipeline_seconds),
        )
        for other in others
    ]


def to_json(report: Report) -> str:
    return (
        json.dumps({"format": FORMAT_VERSION, **asdict(report)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
