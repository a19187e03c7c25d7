"""Training batches from a data set in COCO format.

The n-th image of a run and its augmentation follow from the seed and n alone. A run that is resumed therefore sees the
identical image sequence, whatever the number of loader processes, and several training processes together see the
images that a single process would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from runtime.coco import CocoDataset
from runtime.images import ImageError
from runtime.interrupts import kept_from_children
from runtime.manifest import Preprocess

from ..loss.criterion import Targets
from .augment import REGION, Augment, Sample, augment, choose, training_hw
from .mosaic import Layout, corners, draw_layout, join_parts
from .objects import images_to_train_on
from .repeats import image_factors
from .sampler import EpochOrder

MAX_RETRIES = 20  # consecutive unreadable images before training stops


class TrainBatch(NamedTuple):
    """The images and targets of one step, of one process."""

    images: Tensor  # uint8 [B, H, W, 3]
    targets: Targets
    image_ids: list[int]
    problems: list[str]  # a message for each unreadable image, which the next image replaced
    # float32 [B, R, 4] xyxy, canvas px: regions to ignore, padded with zeros; None where the data set has none.
    regions: Tensor | None = None
    mosaic_ids: tuple[int, ...] = ()  # ids of the images in mosaics, beside the first image of each in `image_ids`


class Item(NamedTuple):
    """One sample of a batch, with the image's id and the messages of unreadable images before it."""

    sample: Sample
    image_id: int  # of the image, or of the first one of a mosaic
    problems: list[str]
    other_ids: tuple[int, ...] = ()  # of a mosaic's other images


class TrainingStream(Dataset[Any]):
    """The endless, seeded stream of augmented samples.

    With `group` above 0, batches of that size are all landscape or all portrait as far as possible. Images with rare
    classes are repeated by `repeat_threshold` (see `repeats`). From sample `mosaic_end` on there are no mosaics.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        settings: Augment,
        pre: Preprocess,
        keep_empty: bool,
        seed: int,
        group: int = 0,
        *,
        repeat_threshold: float = 0.0,
        mosaic_end: int = sys.maxsize,
    ):
        self.indices = images_to_train_on(dataset, keep_empty)
        sizes = dataset.sizes_hw[self.indices]
        factors = image_factors(dataset, self.indices, repeat_threshold)
        self._order = EpochOrder(sizes[:, 0] > sizes[:, 1], seed, group, factors)
        self._mosaic_end = mosaic_end
        self.dataset = dataset
        self.settings = settings
        self.pre = pre
        self.seed = seed

    def __getitem__(self, n: int) -> Item:
        """The n-th sample of the run. The next image replaces an image that can't be read, and a message says so.

        Raises ImageError after `MAX_RETRIES` unreadable images in a row.
        """
        layout = None
        if self.settings.mosaic > 0 and n < self._mosaic_end:
            layout = draw_layout(self.settings, np.random.default_rng((self.seed, 3, n)))
        if layout is not None:
            return self._mosaic(n, layout)
        problems: list[str] = []
        order, position = self._order.around(n)
        rng = np.random.default_rng((self.seed, 1, n))
        index, sample = self._augmented(order, position, self.settings, rng, problems)
        return Item(sample, int(self.dataset.image_ids[index]), problems)

    def _mosaic(self, n: int, layout: Layout) -> Item:
        """The n-th sample as a mosaic of the n-th image and of three others of its epoch."""
        order, position = self._order.around(n)
        canvas_hw = self.settings.crop
        if canvas_hw == (0, 0):
            first = choose(self.settings, np.random.default_rng((self.seed, 3, n, 1)))
            height, width = training_hw(self.dataset.size_hw(self.index_of(n)), first.short_side, self.pre)
            canvas_hw = (width, height) if first.transpose else (height, width)
        where = [corner for corner in corners(canvas_hw, layout) if corner.height > 0 and corner.width > 0]
        positions = [position, *(int(place * len(order)) for place in layout.places)]
        problems: list[str] = []
        ids, parts = [], []
        for k, corner in enumerate(where):
            window = replace(self.settings, crop=(corner.height, corner.width))
            rng = np.random.default_rng((self.seed, 3, n, k + 1))
            index, part = self._augmented(order, positions[k], window, rng, problems, layout.scales[k])
            ids.append(int(self.dataset.image_ids[index]))
            parts.append(part)
        return Item(join_parts(canvas_hw, where, parts, self.pre.pad_value), ids[0], problems, tuple(ids[1:]))

    def _augmented(
        self,
        order: np.ndarray,
        position: int,
        settings: Augment,
        rng: np.random.Generator,
        problems: list[str],
        scale: float = 1.0,
    ) -> tuple[int, Sample]:
        """The image at `position` of an epoch, or the next one that can be read: its index, and it augmented.

        The shorter side is drawn as `settings` say, times `scale`. `problems` receives a message for each image that
        can't be read.
        """
        choices = choose(settings, rng)
        choices = choices._replace(short_side=max(1, round(choices.short_side * scale)))
        for attempt in range(MAX_RETRIES):
            index = int(self.indices[order[(position + attempt) % len(order)]])
            try:
                sample = self.read(index, choices.short_side)
            except ImageError as error:
                problems.append(str(error))
                continue
            size_hw = training_hw(self.dataset.size_hw(index), choices.short_side, self.pre)
            return index, augment(sample, choices, size_hw, settings, self.pre, rng)
        raise ImageError(f"{MAX_RETRIES} images in a row can't be read, the last: {problems[-1]}")

    def __getitems__(self, numbers: list[int]) -> list[Item] | ImageError:
        """The samples of a batch, or an error: raised in a loader process, the error would arrive as a traceback."""
        try:
            return [self[n] for n in numbers]
        except ImageError as error:
            return error

    def index_of(self, n: int, attempt: int = 0) -> int:
        """The index in the data set of the run's n-th image; `attempt` counts its replacements."""
        order, position = self._order.around(n)
        return int(self.indices[order[(position + attempt) % len(order)]])

    def read(self, index: int, short_side: int) -> Sample:
        """Image `index` with at least the pixels that a resize to `short_side` needs, and its boxes in those pixels."""
        boxes, labels, crowd = self.dataset.annotations(index)
        ignore = self.dataset.ignored(index)
        image = self.dataset.load(
            index, self.pre, wanted_hw=lambda image_hw: training_hw(image_hw, short_side, self.pre)
        )
        by = image.size_hw[0] // image.pixels.shape[0]
        # A crowd box covers many objects, so it isn't an example of its class. A region to ignore goes along.
        kept = ~crowd | ignore
        return Sample(image.pixels, boxes[kept] / np.float32(by), np.where(ignore, REGION, labels)[kept])


class _Steps(Sampler[list[int]]):
    """The numbers of the samples of one process's share of the batches of steps `first` … `last` − 1."""

    def __init__(self, first: int, last: int, batch: int, share: int, rank: int) -> None:
        self.first, self.last, self.batch, self.share, self.rank = first, last, batch, share, rank

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            start = step * self.batch + self.rank * self.share
            yield list(range(start, start + self.share))


def collate(
    items: list[Item], canvas_hw: tuple[int, int] | None, pre: Preprocess, has_regions: bool = False
) -> TrainBatch:
    """Make a batch: lay the samples top-left on a canvas each and pad their boxes to the same number.

    The canvas has the size `canvas_hw`, or the largest height and width of the samples, rounded up to multiples of the
    size divisor. With `has_regions` the batch has regions to ignore, though there may be none in these images.
    """
    if canvas_hw is None:
        sides = np.array([item.sample.image.shape[:2] for item in items]).max(axis=0)
        canvas_hw = (int(sides[0]), int(sides[1]))
    height, width = (-(-side // pre.size_divisor) * pre.size_divisor for side in canvas_hw)
    images = np.empty((len(items), height, width, 3), dtype=np.uint8)
    images[:] = pre.pad_value
    for i, sample in enumerate(item.sample for item in items):
        h, w = sample.image.shape[:2]
        images[i, :h, :w] = sample.image
    are_objects = [item.sample.labels != REGION for item in items]
    boxes, mask = _padded([item.sample.boxes[objects] for item, objects in zip(items, are_objects, strict=True)])
    labels = np.zeros(mask.shape, dtype=np.int64)
    labels[mask] = np.concatenate([item.sample.labels[item.sample.labels != REGION] for item in items])
    regions, _ = _padded([item.sample.boxes[~objects] for item, objects in zip(items, are_objects, strict=True)])
    return TrainBatch(
        torch.from_numpy(images),
        Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(mask)),
        [item.image_id for item in items],
        [problem for item in items for problem in item.problems],
        torch.from_numpy(regions) if has_regions else None,
        tuple(other for item in items for other in item.other_ids),
    )


def _padded(boxes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of images, [n, 4] each, padded with zeros to one array [B, G, 4], and which rows are boxes: bool [B, G]."""
    most = max(1, *map(len, boxes))
    padded, mask = np.zeros((len(boxes), most, 4), dtype=np.float32), np.zeros((len(boxes), most), dtype=bool)
    for i, rows in enumerate(boxes):
        padded[i, : len(rows)], mask[i, : len(rows)] = rows, True
    return padded, mask


class _Collate:
    """`collate` with its settings, as an object that loader processes can pickle."""

    def __init__(self, canvas_hw: tuple[int, int] | None, pre: Preprocess, has_regions: bool) -> None:
        self.canvas_hw, self.pre, self.has_regions = canvas_hw, pre, has_regions

    def __call__(self, items: list[Item] | ImageError) -> TrainBatch | ImageError:
        return items if isinstance(items, ImageError) else collate(items, self.canvas_hw, self.pre, self.has_regions)


def training_batches(
    stream: TrainingStream,
    steps: range,
    batch: int,
    workers: int = 0,
    *,
    share: int | None = None,
    rank: int = 0,
    for_gpu: bool = True,
) -> Iterator[TrainBatch]:
    """The batches of the steps, each of `batch` images of the stream, read by `workers` processes.

    Each of several processes takes `share` images of every batch, beginning with image `rank` · `share`; a single
    process takes all. With `for_gpu` batches lie in pinned memory where there is a GPU. Raises ImageError where the
    images can't be read.
    """
    crop = stream.settings.crop
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_sampler=_Steps(steps.start, steps.stop, batch, batch if share is None else share, rank),
        num_workers=workers,
        collate_fn=_Collate(crop if crop != (0, 0) else None, stream.pre, bool(stream.dataset.ignore.any())),
        pin_memory=for_gpu and torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
    )
    with kept_from_children():
        loaded = iter(loader)
    for items in loaded:
        if isinstance(items, ImageError):
            raise items
        yield items


def _prepare_worker(worker: int) -> None:
    """Turn off OpenCV's own threads, since the loader processes share the cores.

    A training that a signal ends closes the connections of batches under way; Python's thread that hands them over
    would print a traceback of each.
    """
    del worker
    cv2.setNumThreads(0)
    usual = sys.excepthook

    def quiet(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, EOFError | ConnectionError):
            usual(kind, error, trace)

    sys.excepthook = quiet
