"""Repeat-factor sampling (LVIS, arXiv 1908.03195): images with rare classes come more than once in an epoch.

A class in the fraction f of the images has the factor max(1, √(t / f)) with the threshold t, and an image the largest
factor of its classes. Of a factor of 2.3 the image comes twice in every epoch, and a third time in 3 of 10 epochs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.coco import CocoDataset

NAMED = 8  # classes that the note names


def class_factors(dataset: CocoDataset, indices: np.ndarray, threshold: float) -> np.ndarray:
    """The repeat factor of each class, float64 [C], at least 1; `indices` are the images of the training.

    Only objects count, no crowds and regions to ignore. A class without objects has the factor 1.
    """
    image_of, labels = _objects(dataset)
    counted = np.isin(image_of, indices)
    pairs = np.unique(np.stack([labels[counted], image_of[counted]]), axis=1)
    images = np.bincount(pairs[0], minlength=len(dataset.classes))
    frequencies = images / max(1, len(indices))
    return np.where(images > 0, np.maximum(1.0, np.sqrt(threshold / np.maximum(frequencies, 1e-12))), 1.0)


def image_factors(dataset: CocoDataset, indices: np.ndarray, threshold: float) -> np.ndarray | None:
    """The repeat factor of each image of `indices`, float64 [n]; an image without objects has 1.

    None where no image has more than 1, as with a threshold of 0.
    """
    of_class = class_factors(dataset, indices, threshold)
    image_of, labels = _objects(dataset)
    factors = np.ones(len(dataset))
    np.maximum.at(factors, image_of, of_class[labels])
    return factors[indices] if (factors[indices] > 1).any() else None


def epoch_length(factors: np.ndarray | None, images: int) -> int:
    """The expected number of samples of an epoch of `images` images; single epochs differ by the fractions' luck."""
    return images if factors is None else round(float(factors.sum()))


def rows_of_epoch(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch's images, rising, each as often as it comes: int64 [m]."""
    whole = np.floor(factors)
    once_more = np.random.default_rng((seed, 4, epoch)).random(len(factors)) < factors - whole
    return np.repeat(np.arange(len(factors)), whole.astype(np.int64) + once_more)


def repeats_note(dataset: CocoDataset, indices: np.ndarray, threshold: float) -> str:
    """A line that names the classes with a factor above 1, the largest first, and the length of an epoch."""
    option = f"--data.repeat-threshold {threshold:g}"
    factors = image_factors(dataset, indices, threshold)
    if factors is None:
        return f"{option} repeats no image: every class is in at least this share of the {len(indices)} images"
    of_class = class_factors(dataset, indices, threshold)
    rare = [label for label in np.argsort(-of_class, kind="stable").tolist() if of_class[label] > 1]
    named = [f"{dataset.classes[label]} {of_class[label]:.3g}" for label in rare[:NAMED]]
    return (
        f"{option} repeats images with {_joined(named, len(rare))}: "
        f"an epoch has about {epoch_length(factors, len(indices))} samples of {len(indices)} images"
    )


def _joined(named: Sequence[str], total: int) -> str:
    others = total - len(named)
    return ", ".join(named) + (f" and {others} other {'class' if others == 1 else 'classes'}" if others else "")


def _objects(dataset: CocoDataset) -> tuple[np.ndarray, np.ndarray]:
    """The image and the label of each object."""
    image_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    is_object = ~dataset.crowd
    return image_of[is_object], dataset.labels[is_object]
