"""Detects on the images of a data set, with one detector or with several side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from tqdm import tqdm

from ..batch_settings import pipeline_settings
from ..batching import batches_by
from ..detections import Detections
from ..detector_protocol import DetectorProtocol
from ..errors import UserError
from ..images import ImageError
from ..pipeline import PipelineSettings, run_pipeline
from ..stopwatch import Stopwatch
from ..tiling.detector import TiledDetector, detect_or_refuse
from .classes import match_dataset
from .dataset import CocoDataset
from .results import Results, ResultsBuilder, results_of_image


@dataclass(frozen=True)
class Speed:
    """Time that a run over a data set took, and images that it skipped."""

    images: int  # read and detected on
    seconds: float  # wall time, reading included
    seconds_network: float  # sum over the network's calls, copies included; the calls may overlap
    skipped: tuple[str, ...]  # a line per image that could not be read
    seconds_per_image: tuple[float, ...] = ()  # the network's, batch by batch

    @property
    def images_per_second(self) -> float:
        """Images per second of wall time."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def network_images_per_second(self) -> float:
        """Images per second of the network's calls."""
        return self.images / self.seconds_network if self.seconds_network > 0 else 0.0


class DatasetRun(NamedTuple):
    """What a detector found on a data set."""

    results: Results  # in the data set's order of images
    image_ids: list[int]  # of the images that were read
    speed: Speed


@dataclass(frozen=True)
class RunSettings:
    """How a data set is run through a detector."""

    batch: int = 8  # images at a time
    limit: int | None = None  # only the first N images; None: all
    max_pixels: int | None = None  # larger images are skipped; None: the data set's limit
    part: tuple[int, int] = (0, 1)  # (i, n): only every n-th batch, from batch i on
    progress: bool = False  # show a progress bar


USUAL = RunSettings()


def detect_dataset(
    detector: DetectorProtocol[Any],
    dataset: CocoDataset,
    settings: RunSettings = USUAL,
    batches: Sequence[Sequence[int]] | None = None,
) -> DatasetRun:
    """Detect on the data set's images. Memory holds few images at a time.

    `batches` are the whole run's, as `plan_batches` gives them, which is called if they are not given.

    Images that cannot be read are skipped and named in `speed.skipped`. The n parts of `settings.part` together give
    what the whole run gives, since each image keeps its batch. The model's classes are matched by name with the data
    set's (`match_classes`). Raises CocoError where they have none in common, BackendError for an image that the graph
    does not take, ImageError where no image could be read.
    """
    return detect_with_all([detector], dataset, settings, batches)[0]


def detect_with_all(
    detectors: Sequence[DetectorProtocol[Any]],
    dataset: CocoDataset,
    settings: RunSettings = USUAL,
    batches: Sequence[Sequence[int]] | None = None,
) -> list[DatasetRun]:
    """As `detect_dataset`, with several detectors on the same images; each image is read once.

    Several detectors take turns batch by batch (A B, B A, A B, …), one at a time, and the first batch of each canvas
    is run once before it is timed. Whatever else the machine does meanwhile slows all of them alike.
    """
    category_ids = [match_dataset(detector.manifest, dataset).category_ids for detector in detectors]
    batch, (part, parts) = settings.batch, settings.part
    planned = plan_batches(detectors, dataset, batch, settings.limit) if batches is None else batches
    several = len(detectors) > 1
    runner = _Runner(detectors, dataset, category_ids, warm_up=several)

    def load(item: _Item) -> _Loaded:
        made: dict[Any, Any] = {}  # detectors that prepare images alike share the prepared image
        for detector in detectors:
            if (kind := _preparing(detector)) not in made:
                made[kind] = detector.prepare(_read(detector, dataset, item.image, settings.max_pixels))
        return _Loaded(item, [made[_preparing(detector)] for detector in detectors])

    usual = pipeline_settings(detectors[0], batch)
    # A whole batch comes before its window ends, so that an unreadable image does not split it.
    pipeline = PipelineSettings(batch, batch, None, usual.loaders, 1 if several else usual.runners)
    items = [_Item(number, index) for number, members in enumerate(planned[part::parts]) for index in members]
    found = [ResultsBuilder() for _ in detectors]
    indices: list[int] = []  # of the images that were read
    skipped: list[str] = []
    started = time.perf_counter()
    with (
        tqdm(total=len(items), desc="detect", unit="img", disable=not settings.progress, leave=False) as bar,
        closing(run_pipeline(items, load, lambda loaded: loaded.item.batch, runner.run, pipeline)) as running,
    ):
        for item, results in zip(items, running, strict=True):
            if isinstance(results, UserError):
                skipped.append(str(results))
            else:
                indices.append(item.image)
                for gathered, one in zip(found, results, strict=True):
                    gathered.add(one)
            bar.update(1)
    seconds = time.perf_counter() - started
    if skipped and not indices and parts == 1:
        raise no_image_readable(skipped)
    image_ids = dataset.image_ids[sorted(indices)].tolist()
    return [
        DatasetRun(
            gathered.results(dataset.image_ids),
            image_ids,
            Speed(len(indices), seconds, sum(calls.seconds), tuple(skipped), tuple(calls.per_image)),
        )
        for gathered, calls in zip(found, runner.calls, strict=True)
    ]


def _read(detector: DetectorProtocol[Any], dataset: CocoDataset, index: int, max_pixels: int | None) -> Any:
    """Image `index`, as the detector takes it; one that cuts images into tiles may read it in strips."""
    if isinstance(detector, TiledDetector):
        most = max_pixels or dataset.max_pixels
        return dataset.read(index, lambda path: detector.load(path, most))
    return dataset.load(index, detector.load_preprocess, max_pixels)


def _preparing(detector: DetectorProtocol[Any]) -> Any:
    """What determines how a detector prepares an image."""
    return type(detector), detector.manifest.preprocess, detector.manifest.inputs


class _Item(NamedTuple):
    batch: int
    image: int  # its index in the data set


class _Loaded(NamedTuple):
    item: _Item
    prepared: list[Any]  # by each detector


class _Calls(NamedTuple):
    """The times of one detector, by batch."""

    seconds: list[float]
    per_image: list[float]


class _Runner:
    """Runs batches through the detectors and records the times; the pipeline calls it from several threads."""

    def __init__(
        self,
        detectors: Sequence[DetectorProtocol[Any]],
        dataset: CocoDataset,
        category_ids: Sequence[Sequence[int | None]],
        warm_up: bool,
    ) -> None:
        self.calls = [_Calls([], []) for _ in detectors]
        self._detectors = detectors
        self._dataset = dataset
        self._category_ids = category_ids  # of each detector's classes
        self._cold = warm_up
        self._warm: set[Any] = set()
        self._lock = threading.Lock()
        self._turn = 0

    def run(self, batch: list[_Loaded]) -> list[list[Results] | UserError]:
        """Results of each image, by detector; the error of an image that proved damaged while it was detected on."""
        size_hw = self._dataset.size_hw(batch[0].item.image)
        canvases = tuple(detector.canvas_hw(size_hw) for detector in self._detectors)
        if self._cold and canvases not in self._warm:
            self._warm.add(canvases)
            for number, detector in enumerate(self._detectors):
                detect_or_refuse(detector, [loaded.prepared[number] for loaded in batch])
        with self._lock:
            turn, self._turn = self._turn, self._turn + 1
        results: list[list[Results | UserError]] = [[] for _ in self._detectors]
        for number in turn_order(len(self._detectors), turn):
            detector, stopwatch = self._detectors[number], Stopwatch()
            found = detect_or_refuse(detector, [loaded.prepared[number] for loaded in batch], stopwatch)
            results[number] = [
                one if isinstance(one, UserError) else self._as_results(loaded, one, number)
                for loaded, one in zip(batch, found, strict=True)
            ]
            if "network" in stopwatch.seconds:  # else no image of the batch could be read
                with self._lock:
                    self.calls[number].seconds.append(stopwatch.seconds["network"])
                    self.calls[number].per_image.append(stopwatch.seconds["network"] / len(batch))
        return [_all_or_error(per_image) for per_image in zip(*results, strict=True)]

    def _as_results(self, loaded: _Loaded, found: Detections, number: int) -> Results:
        image_id = int(self._dataset.image_ids[loaded.item.image])
        growth = self._detectors[number].manifest.thresholds.box_growth
        return results_of_image(image_id, found, self._category_ids[number], growth)


def _all_or_error(per_detector: Sequence[Results | UserError]) -> list[Results] | UserError:
    read: list[Results] = []
    for one in per_detector:
        if isinstance(one, UserError):
            return one
        read.append(one)
    return read


def turn_order(count: int, turn: int) -> list[int]:
    """The order of `count` detectors at a turn: directions alternate and starts rotate, so that none is always last."""
    order = [(turn // 2 + step) % count for step in range(count)]
    return order if turn % 2 == 0 else order[::-1]


def no_image_readable(skipped: Sequence[str]) -> ImageError:
    """The error for a data set in which no image can be read."""
    return ImageError(f"none of the {len(skipped)} images could be read; the first: {skipped[0]}")


def plan_batches(
    detectors: Sequence[DetectorProtocol[Any]], dataset: CocoDataset, batch: int, limit: int | None = None
) -> list[list[int]]:
    """Indices of the images in batches that share a canvas size, so that no image is padded to that of another."""
    if batch < 1:
        raise UserError(f"batch is {batch}, expected at least 1")

    def canvases(index: int) -> tuple[tuple[int, int], ...]:
        return tuple(detector.canvas_hw(dataset.size_hw(index)) for detector in detectors)

    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))
    batches = batches_by(indices, canvases, batch)
    return [list(members) for _, members in sorted(batches, key=lambda one: one[0])]
