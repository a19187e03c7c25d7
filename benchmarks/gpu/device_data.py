"""Training images that lie in the device's memory and are augmented there, for trainings that a host can't feed.

The augmentation is `train.data.augment`'s, a batch at a time: the same flips, sizes, crops and colours by other random
numbers. Images are sampled bilinearly, also where they shrink.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.coco import CocoDataset
from train.config import Config
from train.data.augment import MIN_SIDE, Augment
from train.data.loader import TrainBatch
from train.data.sampler import shuffled
from train.loss.criterion import Targets

_AT_ONCE = 1000  # images that are copied to the device in one piece


class Placed(NamedTuple):
    """Where the images of a batch come to lie: x' = `linear` · x + `shift`, in px."""

    linear: Tensor  # float32 [B, 2, 2]: a mirrored or transposed unit matrix times the scale
    shift: Tensor  # float32 [B, 2]


def decode(dataset: CocoDataset, side: int, pad_value: tuple[int, ...], threads: int, path: Path) -> np.ndarray:
    """All images of a data set in squares of `side` px, uint8 [N, S, S, 3], in a file that processes can share.

    A file that is there is taken as it is. The images must fit into the squares.
    """
    if not path.exists():
        temporary = path.with_name(f"unfinished.{path.name}")
        pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(dataset), side, side, 3))

        def place(index: int) -> None:
            image = dataset.image(index)
            pixels[index] = pad_value
            pixels[index, : image.shape[0], : image.shape[1]] = image

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(place, range(len(dataset))):
                pass
        del pixels
        temporary.rename(path)  # without waiting for the disk: gigabytes that a run can make again
    return np.load(path, mmap_mode="r")


class DeviceImages:
    """All images of a data set on the device with their boxes: a `BatchSource` of training.

    `pixels` are `decode`'s. The n-th image of a run and its augmentation follow from the seed and n.
    """

    def __init__(self, dataset: CocoDataset, pixels: np.ndarray, pad_value: tuple[int, ...], device: torch.device):
        count, side = len(dataset), pixels.shape[1]
        self.device, self.image_ids = device, dataset.image_ids
        self._pad = torch.tensor(pad_value, dtype=torch.float32, device=device)
        self.images = torch.empty((count, side, side, 3), dtype=torch.uint8, device=device)
        most = max(1, int(np.diff(dataset.offsets).max()))
        boxes, labels = np.zeros((count, most, 4), np.float32), np.zeros((count, most), np.int64)
        mask = np.zeros((count, most), bool)
        for first in range(0, count, _AT_ONCE):
            block = np.array(pixels[first : first + _AT_ONCE])
            self.images[first : first + len(block)] = torch.from_numpy(block).to(device)
        for index in range(count):
            found, classes, crowd = dataset.annotations(index)
            number = int((~crowd).sum())
            boxes[index, :number], labels[index, :number], mask[index, :number] = found[~crowd], classes[~crowd], True
        self.targets = Targets(*(torch.from_numpy(array).to(device) for array in (boxes, labels, mask)))
        self.sizes_hw = torch.from_numpy(dataset.sizes_hw.astype(np.float32)).to(device)

    def __call__(
        self, dataset: CocoDataset, settings: Config, first_step: int, share: int, rank: int
    ) -> Iterator[TrainBatch]:
        """The batches of a run from step `first_step` on; `settings` must crop to a square of the images' side."""
        del dataset  # the images of that data set are what lies here
        seed, batch = settings.run.seed, settings.schedule.batch
        order, epoch = np.empty(0, np.int64), -1
        generator = torch.Generator(self.device)
        for step in range(first_step, settings.schedule.steps):
            rows = []
            for number in range(step * batch + rank * share, step * batch + (rank + 1) * share):
                if number // len(self.images) != epoch:
                    epoch = number // len(self.images)
                    order = shuffled(len(self.images), seed, epoch)
                rows.append(int(order[number % len(self.images)]))
            generator.manual_seed((seed * 1_000_003 + step) * 1009 + rank)
            # From pinned memory, so that the host doesn't wait for the device.
            index = torch.tensor(rows, pin_memory=self.device.type == "cuda").to(self.device, non_blocking=True)
            sizes_hw, targets = self.sizes_hw[index], Targets(*(tensor[index] for tensor in self.targets))
            placed = choose(sizes_hw, settings.augment, self.images.shape[1], generator)
            images = move_images(self.images[index], placed, self._pad)
            images = jitter_colours(images, settings.augment, generator)
            targets = move_targets(targets, placed, self.images.shape[1], settings.augment.min_visible)
            yield TrainBatch(images, targets, self.image_ids[rows].tolist(), [])


def choose(sizes_hw: Tensor, settings: Augment, side: int, generator: torch.Generator) -> Placed:
    """Random flips, size and crop of images float32 [B, 2] (height, width) for windows of `side` px.

    The shorter side is drawn between `settings`' bounds, without the limit of the longer side.
    """

    def uniform(columns: int = 1) -> Tensor:
        return torch.rand((len(sizes_hw), columns), generator=generator, device=sizes_hw.device)

    width_height = sizes_hw.flip(1)
    flips = torch.cat((uniform() < settings.horizontal_flip, uniform() < settings.vertical_flip), dim=1)
    sign = 1 - 2 * flips.float()
    swap = uniform() < settings.transpose
    low, high = settings.short_side_min, settings.short_side_max
    scale = (low + (high - low) * uniform()) / sizes_hw.amin(dim=1, keepdim=True)
    linear = torch.diag_embed(sign * scale)
    linear = torch.where(swap[:, :, None], linear.flip(1), linear)
    shift = flips * width_height * scale
    shift = torch.where(swap, shift.flip(1), shift)
    size = torch.where(swap, width_height.flip(1), width_height) * scale
    return Placed(linear, shift - uniform(2) * (size - side).clamp_min(0))


def move_images(images: Tensor, placed: Placed, pad: Tensor) -> Tensor:
    """Images uint8 [B, S, S, 3] sampled at their new places; the colour `pad` float32 [3] where there is no image."""
    side = images.shape[1]
    back = placed.linear.mT / (placed.linear.square().sum(dim=(1, 2), keepdim=True) / 2)  # its inverse
    # In grid_sample's coordinates, −1 … 1 over the square: u = 2x / S − 1.
    offset = (back @ (1 - 2 / side * placed.shift)[..., None]) - 1
    grid = F.affine_grid(torch.cat((back, offset), dim=2), [len(images), 3, side, side], align_corners=False)
    pixels = (images.float() - pad).permute(0, 3, 1, 2)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved.permute(0, 2, 3, 1) + pad).round().clamp(0, 255).to(torch.uint8)


def move_targets(targets: Targets, placed: Placed, side: int, min_visible: float) -> Targets:
    """The targets at their new places, clipped to the window; boxes of which too little is left are masked out."""
    boxes, labels, mask = targets
    corners = boxes.unflatten(2, (2, 2)) @ placed.linear.mT[:, None] + placed.shift[:, None, None]
    whole = torch.cat((corners.amin(dim=2), corners.amax(dim=2)), dim=2)
    clipped = whole.clamp(0, side)
    sides = clipped[..., 2:] - clipped[..., :2]
    area = (whole[..., 2:] - whole[..., :2]).prod(dim=2)
    kept = mask & (sides >= MIN_SIDE).all(dim=2) & (sides.prod(dim=2) >= min_visible * area)
    return Targets(clipped * kept[..., None], labels * kept, kept)


def jitter_colours(images: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast and saturation for each image, uint8 [B, H, W, 3] in and out."""

    def factor(most: float) -> Tensor:
        return most * (2 * torch.rand((len(images), 1, 1, 1), generator=generator, device=images.device) - 1)

    contrast, saturation = 1 + factor(settings.contrast), 1 + factor(settings.saturation)
    shift = 255 * factor(settings.brightness)
    pixels = images.float()
    grey = pixels.mean(dim=3, keepdim=True)
    changed = contrast * (grey + saturation * (pixels - grey)) + shift + 127.5 * (1 - contrast)
    return changed.round().clamp(0, 255).to(torch.uint8)
