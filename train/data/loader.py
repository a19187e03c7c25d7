"""Training batches from a data set in COCO format.

The n-th image of a run and its augmentation follow from the seed and n alone. A run that is resumed therefore sees the
identical image sequence, whatever the number of loader processes, and several training processes together see the
images that a single process would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
from .objects import images_to_train_on
from .sampler import grouped_by_aspect, shuffled

MAX_RETRIES = 20  # consecutive unreadable images before training stops


class TrainBatch(NamedTuple):
    """The images and targets of one step, of one process."""

    images: Tensor  # uint8 [B, H, W, 3]
    targets: Targets
    image_ids: list[int]
    problems: list[str]  # a message for each unreadable image, which the next image replaced
    # float32 [B, R, 4] xyxy, canvas px: regions to ignore, padded with zeros; None where the data set has none.
    regions: Tensor | None = None


class Item(NamedTuple):
    """One sample of a batch, with the image's id and the messages of unreadable images before it."""

    sample: Sample
    image_id: int
    problems: list[str]


class TrainingStream(Dataset[Any]):
    """The endless, seeded stream of augmented samples.

    With `group` above 0, batches of that size are all landscape or all portrait as far as possible.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        settings: Augment,
        pre: Preprocess,
        keep_empty: bool,
        seed: int,
        group: int = 0,
    ):
        self.indices = images_to_train_on(dataset, keep_empty)
        sizes = dataset.sizes_hw[self.indices]
        self._is_portrait = sizes[:, 0] > sizes[:, 1]
        self._group = group
        self.dataset = dataset
        self.settings = settings
        self.pre = pre
        self.seed = seed
        self._order = (-1, np.empty(0, dtype=np.int64))  # epoch and its permutation, cached

    def __getitem__(self, n: int) -> Item:
        """The n-th sample of the run. The next image replaces an image that can't be read, and a message says so.

        Raises ImageError after `MAX_RETRIES` unreadable images in a row.
        """
        problems: list[str] = []
        for attempt in range(MAX_RETRIES):
            index = self.index_of(n, attempt)
            rng = np.random.default_rng((self.seed, 1, n))
            choices = choose(self.settings, rng)
            try:
                sample = self.read(index, choices.short_side)
            except ImageError as error:
                problems.append(str(error))
                continue
            size_hw = training_hw(self.dataset.size_hw(index), choices.short_side, self.pre)
            changed = augment(sample, choices, size_hw, self.settings, self.pre, rng)
            return Item(changed, int(self.dataset.image_ids[index]), problems)
        raise ImageError(f"{MAX_RETRIES} images in a row can't be read, the last: {problems[-1]}")

    def __getitems__(self, numbers: list[int]) -> list[Item] | ImageError:
        """The samples of a batch, or an error: raised in a loader process, the error would arrive as a traceback."""
        try:
            return [self[n] for n in numbers]
        except ImageError as error:
            return error

    def index_of(self, n: int, attempt: int = 0) -> int:
        """The index in the data set of the run's n-th image; `attempt` counts its replacements."""
        epoch, position = divmod(n, len(self.indices))
        if self._order[0] != epoch:
            if self._group:
                order = grouped_by_aspect(self._is_portrait, self.seed, epoch, self._group)
            else:
                order = shuffled(len(self.indices), self.seed, epoch)
            self._order = (epoch, order)
        return int(self.indices[self._order[1][(position + attempt) % len(self.indices)]])

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
    for i, (sample, _, _) in enumerate(items):
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
    stream: TrainingStream, steps: range, batch: int, workers: int = 0, *, share: int | None = None, rank: int = 0
) -> Iterator[TrainBatch]:
    """The batches of the steps, each of `batch` images of the stream, read by `workers` processes.

    Each of several processes takes `share` images of every batch, beginning with image `rank` · `share`; a single
    process takes all. Raises ImageError where the images can't be read.
    """
    crop = stream.settings.crop
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_sampler=_Steps(steps.start, steps.stop, batch, batch if share is None else share, rank),
        num_workers=workers,
        collate_fn=_Collate(crop if crop != (0, 0) else None, stream.pre, bool(stream.dataset.ignore.any())),
        pin_memory=torch.cuda.is_available(),
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
