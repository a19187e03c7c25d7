"""What a model or a results file found on a data set, with its metrics: what a report is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..detection_filter import DetectionFilter
from ..manifest import Manifest
from ..tta import NO_TTA, TtaSettings
from .dataset import CocoDataset
from .ground_truth import GroundTruth
from .metrics import CocoMetrics
from .results import Results
from .run import Speed


@dataclass(frozen=True)
class Scored:
    """The detections and metrics of one model or results file."""

    source: Path | str  # of the model or the results file: a path, or a served model's address
    name: str  # as it was given: with the backend that was asked for, or a name of its own
    results: Results  # all of them: the filter has not been applied
    image_ids: list[int]  # that were scored
    metrics: CocoMetrics
    speed: Speed | None = None  # None: it did not run here
    manifest: Manifest | None = None  # None: of results, whose model is not known
    backend: str = ""  # what ran the model; empty: not known


@dataclass(frozen=True)
class Scoring:
    """A whole evaluation: the data set, and each model or results file on the same images."""

    dataset: CocoDataset
    truth: GroundTruth
    kept: DetectionFilter  # what counts
    scored: tuple[Scored, ...]
    has_images: bool  # whether the folder of the images was given
    conditions: dict[str, str]  # what else the figures depend on: see `conditions_of`


def conditions_of(limit: int | None, tta: TtaSettings) -> dict[str, str]:
    """What the figures depend on beside models and data, where it isn't the usual: `limit` images, and the views."""
    found = {} if limit is None else {"images": f"the first {limit} of the annotations"}
    return found if tta == NO_TTA else {**found, "views": str(tta)}


Reporter = Callable[[Path, Scoring, Sequence[str] | None], None]  # writes a report to the path; the command's arguments
