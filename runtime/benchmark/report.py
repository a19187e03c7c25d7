"""The results of a benchmark as records, and as JSON: figures per model and batch size, ratios, and conditions.

In the JSON, and so in the records, a model is called an artifact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..machine.conditions import Machine, Run
from ..machine.gpu_watch import GpuReport
from ..stopwatch import STAGES
from .images import ImageSet
from .measuring import Distribution, distribution, speed_ratios
from .model_info import ModelInfo
from .rounds import Measured

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Figures:
    """The figures of one model at one batch size."""

    artifact: str
    batch: int
    canvases: dict[str, int]  # batches per round, by canvas
    stage_ms: dict[str, Distribution]  # per batch; "rest" is the time between stages, "total" the whole
    stage_images_per_second: dict[str, float]  # without stages that took no time
    detections_per_image: float
    nms_reruns: int  # images whose NMS ran on the host, in all rounds
    serial_images_per_second: Distribution  # over rounds, stages one after another
    pipeline_images_per_second: Distribution  # over rounds
    serial_round_seconds: tuple[float, ...]  # of each round, stages one after another
    pipeline_round_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Memory:
    """The process' memory before the models were opened and at its peak, in MiB; None where it isn't reported."""

    artifacts: tuple[str, ...]
    before_mb: float | None
    peak_mb: float | None

    @classmethod
    def measured(cls, artifacts: tuple[str, ...], before_mb: float | None, peak_mb: float | None) -> Memory:
        """The memory as the system reports it, with a peak that is no less than what came before.

        Linux adds up its counters per processor for the present value and takes an estimate for the peak, which may
        then lie a little below.
        """
        if before_mb is not None and peak_mb is not None:
            peak_mb = max(before_mb, peak_mb)
        return cls(artifacts, before_mb, peak_mb)


@dataclass(frozen=True)
class Pair:
    """How many times as fast `artifact` is as `base`, from adjacent rounds."""

    base: str
    artifact: str
    batch: int
    serial: Distribution  # all stages, one after another
    infer: Distribution
    pipeline: Distribution


@dataclass(frozen=True)
class Settings:
    """What to measure, and how often."""

    batches: tuple[int, ...]  # batch sizes
    rounds: int  # over all images, at each batch size
    warmup_rounds: int  # before those, not recorded
    alternating: bool  # between the models, which gives ratios


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark found, with the conditions under which it did."""

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
    """The figures of measured rounds over `image_count` images."""
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
    """Ratios of each model's rounds to those of the first model. The rounds must have alternated."""

    # Per batch: where canvases differ, a round of one model may have more (padded) batches than a round of another.
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
    """The report as JSON text."""
    return (
        json.dumps({"format": FORMAT_VERSION, **asdict(report)}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
