"""Everything that a report's page shows, as plain values. `collect` fills these records, `page` renders them.

A part that is not known is None or empty, and the page then leaves its section out. All metrics, scores, precisions and
recalls are in 0–1, with −1 for what was not measured. Boxes are xyxy in pixels of the image. Names, paths and texts are
shown as they are: they may hold anything. Arrays may be given where a field asks for floats.

K classes, T IoU thresholds, D detections, G objects of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ..images import MAX_PIXELS

Floats: TypeAlias = Sequence[float] | np.ndarray
Ints: TypeAlias = Sequence[int] | np.ndarray

# What a detection is, as TIDE names it (arXiv 2008.08115). "ignored" lies in a crowd or in a region to ignore.
Kind = Literal["correct", "class", "localisation", "both", "duplicate", "background", "ignored"]
# What is wrong: the kinds of detections that are errors, and objects that no detection found.
ErrorKind = Literal["class", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("class", "localisation", "both", "duplicate", "background", "missed")
# What became of a detection from the first model to another one.
ChangeKind = Literal["gained", "lost", "moved", "rescored"]
CHANGE_KINDS: tuple[ChangeKind, ...] = ("gained", "lost", "moved", "rescored")

THUMBNAIL_BYTES = 2_500_000  # of all thumbnails in the page, as text


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95 % interval.

    There are none without resamples, and where too few images have an object to measure on. The value of a metric that
    was not measured is −1.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PrecisionCurves:
    """Precision over recall, COCO's 101 points, all areas, 100 detections per image."""

    ious: tuple[float, ...]  # [T], rising
    precision: np.ndarray  # [T, 101, K]; −1 for a class without objects


@dataclass(frozen=True)
class ScoreCurve:
    """Precision, recall and F1 over the score threshold, at IoU 0.5."""

    scores: Floats  # rising or falling
    precision: Floats
    recall: Floats
    f1: Floats
    best_score: float  # the threshold with the highest F1
    best_f1: float


@dataclass(frozen=True)
class Reliability:
    """How often detections of a score are right, and the histograms of their scores. N bins."""

    edges: Floats  # [N + 1], 0–1
    hits: Ints  # detections of each bin that are right at IoU 0.5
    misses: Ints  # those that are wrong
    confidence: Floats  # mean score by bin; −1 for an empty bin
    precision: Floats  # share of hits by bin; −1 for an empty bin
    error: float  # the expected calibration error


@dataclass(frozen=True)
class Confusion:
    """Which class the detections of each object have, above a score."""

    counts: np.ndarray  # int [K + 1, K + 1]: rows are the truth, columns the detections, the last is the background
    iou: float = 0.5


@dataclass(frozen=True)
class KindOfError:
    """How often one kind of error occurs, and what mending every one of them would add."""

    count: int
    worth_ap: float  # AP after mending minus AP, 0–1
    worth_ap50: float
    per_class: Ints = ()  # how often, by class [K]; empty: not known


@dataclass(frozen=True)
class Changes:
    """What another model changed against the first one, over all images and detections above the report's score."""

    counts: Mapping[ChangeKind, int]
    per_class: Mapping[ChangeKind, Ints]  # each [K]
    images: int  # how many images have a change
    unchanged: int  # detections that are the same in both
    moved_iou: float | None = None  # median IoU of the moved detections' boxes
    score_shift: float | None = None  # median of the other model's score minus the first model's, of detections in both


@dataclass(frozen=True)
class StageTime:
    """How long one stage takes, in ms per image."""

    name: str
    median_ms: float
    p90_ms: float | None = None


@dataclass(frozen=True)
class SpeedFacts:
    """Time by stage, and the conditions of the measurement."""

    stages: tuple[StageTime, ...]
    images_per_second: float | None
    conditions: Mapping[str, str]  # processor, batch, canvas, backend …, in order


@dataclass(frozen=True)
class ModelContent:
    """One model or one results file."""

    name: str  # short; distinct among the models
    file: str  # path or address, as the person gave it
    facts: Mapping[str, str]  # precision, backend, size of the file …, in the order to show
    metrics: Mapping[str, Interval]  # by METRIC_NAMES
    per_class: Mapping[str, Interval]  # AP by class name
    detections: int  # all of them, without a threshold
    difference: Mapping[str, Interval] | None = None  # to the first model, by METRIC_NAMES; None for the first
    per_class_difference: Mapping[str, Interval] | None = None
    curves: PrecisionCurves | None = None
    f1: ScoreCurve | None = None  # over all classes
    f1_per_class: Mapping[str, ScoreCurve] = field(default_factory=dict)
    reliability: Reliability | None = None
    confusion: Confusion | None = None
    errors: Mapping[ErrorKind, KindOfError] = field(default_factory=dict)  # by ERROR_KINDS; empty: not known
    changes: Changes | None = None  # against the first model; None for the first
    speed: SpeedFacts | None = None
    manifest: Mapping[str, Any] | None = None  # as JSON's types
    problems: tuple[str, ...] = ()  # what was left out or read otherwise than written, a line per kind


@dataclass(frozen=True)
class TruthBox:
    """One annotated object or region of an image."""

    box: tuple[float, float, float, float]
    label: int  # class index
    region: bool = False  # a crowd or a region to ignore
    # By model: the score of the detection that found the object (right class, IoU 0.5 or more); 0 where none did.
    found_at: tuple[float, ...] = ()


@dataclass(frozen=True)
class DetectedBox:
    """One detection in an image."""

    box: tuple[float, float, float, float]
    label: int  # class index
    score: float
    kind: Kind
    # Against the first model ("lost" belongs to detections of the first one); None: unchanged, or nothing to compare.
    changes: tuple[ChangeKind | None, ...] = ()  # for a detection of the first model by other model, else of length 1


@dataclass(frozen=True)
class ImageContent:
    """One image with its objects and the detections of every model."""

    name: str  # file name, as the annotations have it
    path: Path | None  # None: there are no files of images
    size_hw: tuple[int, int]
    truth: tuple[TruthBox, ...]
    detections: tuple[tuple[DetectedBox, ...], ...]  # by model, best first
    badness: float  # how much is wrong with it: the page begins with the highest
    changed: float = 0.0  # how much the models differ on it; 0: not at all


@dataclass(frozen=True)
class CountTable:
    """How many objects fall into each group, beside the training set's."""

    title: str  # "class", "size (COCO)", "aspect ratio"
    groups: tuple[str, ...]
    counts: Ints
    training: Ints | None = None  # None: the training set is not known


@dataclass(frozen=True)
class Series:
    """One line of a chart over training steps."""

    name: str
    steps: Floats
    values: Floats


@dataclass(frozen=True)
class RunContent:
    """A training run."""

    folder: str
    losses: tuple[Series, ...]  # the total first
    metrics: tuple[Series, ...]  # AP on the validation set …, 0–1
    settings: Mapping[str, Any]  # nested, as the configuration has them
    facts: Mapping[str, str] = field(default_factory=dict)  # steps, duration, device …, in the order to show


@dataclass(frozen=True)
class DataContent:
    """The data set that the models were scored on."""

    annotations: str  # path, as the person gave it
    images: int  # that were scored
    objects: int  # that count; crowds and regions to ignore do not
    classes: tuple[str, ...]  # [K]
    counts: tuple[CountTable, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """A whole report. Of `images` the page shows as many as its budget for thumbnails allows."""

    title: str
    made: str  # date and time, as text
    toolkit: str  # name and version
    command: str  # that made the report; empty: unknown
    min_score: float  # of detections in the confusion matrix, the changes and the images
    resamples: int  # of the intervals; 0: there are none
    data: DataContent
    models: tuple[ModelContent, ...]
    images: tuple[ImageContent, ...] = ()  # those to choose from, in any order
    runs: tuple[RunContent, ...] = ()
    thumbnail_bytes: int = THUMBNAIL_BYTES
    max_pixels: int = MAX_PIXELS  # of an image; larger ones have no thumbnail
    notes: tuple[str, ...] = ()  # what the reader should know first, beside what the page finds itself
    # What the figures depend on beside models and data, where it isn't the usual; among the notes too.
    conditions: tuple[str, ...] = ()
