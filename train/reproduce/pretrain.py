"""The initial weights of the backbone, from a classifier of single objects: the counterpart of the paper's ImageNet.

The classifier learns the class of crops around the objects of the training images, so that the weights favour no
assigner. All runs start with the same weights.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.coco import CocoDataset, load_coco
from runtime.files import atomic_path, patient_file

from ..config import Augment
from ..data.augment import Sample, flip_horizontal, flip_vertical, jitter_colour, transpose
from ..data.sampler import shuffled
from ..model.backbones import build_backbone
from .systems import BACKBONE, PREPROCESS

CROP = 64  # px
_COLOURS = Augment(brightness=0.1, contrast=0.2, saturation=0.3)
EPOCHS = 10
_IMAGES = 12  # per batch; a batch is the objects of these images
_RATE = 4e-3


def pretrain(data: Path, file: Path, epochs: int = EPOCHS) -> None:
    """Train the backbone on the objects of a `shapes` data set and write its weights to `file`."""
    torch.manual_seed(0)
    backbone, pre = BACKBONE, PREPROCESS
    dataset = load_coco(data / "train.json", data / "train")
    network = build_backbone(backbone).to(memory_format=torch.channels_last).train()
    classifier = nn.Linear(network.channels[-1], len(dataset.classes))
    optimizer = torch.optim.AdamW([*network.parameters(), *classifier.parameters()], lr=_RATE, weight_decay=0.05)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (pre.mean, pre.std))
    batches = epochs * len(dataset) // _IMAGES
    right, seen, started = 0, 0, time.monotonic()
    for batch in range(batches):
        images, labels = crops_of_batch(dataset, batch)
        if len(labels) < 2:  # batch norm has no statistics of a single crop
            continue
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, (batch + 1) / 50) * _half_cosine(batch / batches)
        with torch.autocast("cpu", torch.bfloat16):
            features = network((images.permute(0, 3, 1, 2).float() - mean) / std)[-1]
        logits = classifier(features.float().mean(dim=(2, 3)))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        right += int((logits.argmax(dim=1) == labels).sum())
        seen += len(labels)
        if (batch + 1) % max(1, len(dataset) // _IMAGES) == 0:
            print(f"crops classified: {right / seen:.3f} right, {time.monotonic() - started:.0f} s", flush=True)
            right = seen = 0
    with atomic_path(file) as temporary, patient_file(temporary) as stream:
        torch.save(network.state_dict(), stream)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def crops_of_batch(dataset: CocoDataset, batch: int) -> tuple[Tensor, Tensor]:
    """The objects of batch number `batch`: crops uint8 [n, CROP, CROP, 3] and classes int64 [n]."""
    images, labels = [], []
    for number in range(batch * _IMAGES, (batch + 1) * _IMAGES):
        epoch, position = divmod(number, len(dataset))
        index = int(shuffled(len(dataset), 0, epoch)[position])
        boxes, classes, _ = dataset.annotations(index)
        image = dataset.image(index)
        rng = np.random.default_rng((0, 1, number))
        for box, label in zip(boxes, classes, strict=True):
            images.append(crop_around(image, box, rng))
            labels.append(int(label))
    stacked = np.stack(images) if images else np.empty((0, CROP, CROP, 3), np.uint8)
    return torch.from_numpy(stacked), torch.tensor(labels, dtype=torch.long)


def crop_around(image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop uint8 [CROP, CROP, 3] around a box xyxy px, black outside the image.

    Its side is one to two times the box's longer side, and the box is not quite in the middle.
    """
    longer = float((box[2:] - box[:2]).max())
    side = longer * rng.uniform(1, 2)
    corner = (box[:2] + box[2:]) / 2 - side / 2 + rng.uniform(-0.15, 0.15, 2) * longer
    scale = CROP / side
    matrix = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    cut = cv2.warpAffine(image, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR)
    sample = Sample(cut, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    for change in (flip_horizontal, flip_vertical, transpose):
        if rng.random() < 0.5:
            sample = change(sample)
    return jitter_colour(np.ascontiguousarray(sample.image), _COLOURS, rng)
