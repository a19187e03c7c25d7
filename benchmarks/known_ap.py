"""Makes data sets whose AP with endless images is known, to test intervals with.

Each object is found with a probability, at a random IoU and a random score; wrong detections come by themselves. Images
are easy or hard, so that the objects of an image depend on one another. The expected numbers of hits and misses above
each score then follow from the distributions, and so does AP.

K classes, n images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.coco import parse_ground_truth
from runtime.coco.ground_truth import GroundTruth
from runtime.coco.matching import IOUS
from runtime.coco.results import Results
from runtime.coco.scoring import RECALLS

SIDE = 80.0  # px of an object; its neighbours are far enough for no overlap
PLACES = 40  # objects and wrong detections of an image at most


@dataclass(frozen=True)
class Population:
    """What images and a detector are like."""

    classes: int = 3
    objects: float = 2.0  # expected number in an image, of each class
    found: tuple[float, float] = (0.9, 0.5)  # probability that an object is found, in easy and in hard images
    wrong: tuple[float, float] = (0.5, 2.0)  # expected number of detections of the background, of each class
    quality: float = 2.0  # IoUs of what is found are 0.4 + 0.6 · Beta(quality, 1)
    hit_scores: tuple[float, float] = (4.0, 2.0)  # of a Beta distribution
    wrong_scores: tuple[float, float] = (2.0, 4.0)

    def true_ap(self, points: int = 200_000) -> float:
        """AP with endless images, from the distributions at this many thresholds of the score; all classes are alike.

        The shares of scores above a threshold come from fixed quantiles of the two Beta distributions.
        """
        rng = np.random.default_rng(12345)
        hit = np.sort(rng.beta(*self.hit_scores, 20 * points))[::-1]
        wrong = np.sort(rng.beta(*self.wrong_scores, 20 * points))
        step = len(hit) // points
        falling = hit[step - 1 :: step]
        above_hit = np.arange(1, len(falling) + 1) / len(falling)
        above_wrong = 1 - np.searchsorted(wrong, falling) / len(wrong)
        found, background = float(np.mean(self.found)), float(np.mean(self.wrong))
        total = 0.0
        for iou in IOUS:
            good = 1 - ((iou - 0.4) / 0.6) ** self.quality  # share of IoUs that are no less
            recall = found * good * above_hit
            detections = self.objects * found * above_hit + background * above_wrong
            precision = self.objects * recall / detections
            highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            total += float(highest[np.searchsorted(recall, RECALLS, side="left")].mean())
        return total / len(IOUS)


@dataclass(frozen=True)
class Drawn:
    """One data set and the results of two detectors on it."""

    truth: GroundTruth
    results: tuple[Results, ...]


def draw(populations: tuple[Population, ...], images: int, seed: int) -> Drawn:
    """Images with objects, and the results of a detector of each population on the same images.

    The detectors share which images are hard, and see the same objects; `objects` and `classes` are the first one's.
    """
    rng = np.random.default_rng(seed)
    first = populations[0]
    hard = rng.integers(0, 2, images)
    counts = np.minimum(rng.poisson(first.objects, (images, first.classes)), PLACES // 2)
    image, label = np.nonzero(counts)
    repeats = counts[image, label]
    image, label = np.repeat(image, repeats), np.repeat(label, repeats)
    place = np.arange(len(image)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    annotations = [
        {"id": row + 1, "image_id": i + 1, "category_id": c + 1, "bbox": [p * 2 * SIDE, 0.0, SIDE, SIDE], "iscrowd": 0}
        for row, (i, c, p) in enumerate(zip(image.tolist(), label.tolist(), place.tolist(), strict=True))
    ]
    truth = parse_ground_truth(
        {
            "images": [{"id": i + 1, "height": 200, "width": 10_000} for i in range(images)],
            "categories": [{"id": c + 1, "name": f"c{c + 1}"} for c in range(first.classes)],
            "annotations": annotations,
        }
    )
    difficulty, luck = rng.random(len(image)), rng.random(len(image))
    found = [_detect(population, rng, hard, image, label, place, difficulty, luck) for population in populations]
    return Drawn(truth, tuple(found))


def _detect(
    population: Population,
    rng: np.random.Generator,
    hard: np.ndarray,
    image: np.ndarray,
    label: np.ndarray,
    place: np.ndarray,
    difficulty: np.ndarray,
    luck: np.ndarray,
) -> Results:
    is_found = difficulty < np.array(population.found)[hard[image]]
    iou = (0.4 + 0.6 * luck ** (1 / population.quality))[is_found]
    wrong = np.minimum(
        rng.poisson(np.array(population.wrong)[hard][:, None], (len(hard), population.classes)), PLACES // 2
    )
    wrong_image, wrong_label = (np.repeat(rows, wrong.ravel()) for rows in np.indices(wrong.shape).reshape(2, -1))
    boxes = np.zeros((len(iou) + len(wrong_image), 4))
    boxes[:, 2:] = SIDE
    boxes[: len(iou), 0], boxes[: len(iou), 2] = place[is_found] * 2 * SIDE, SIDE * iou  # within the object
    boxes[len(iou) :, 1] = 10 * SIDE  # far from all objects
    return Results(
        np.concatenate([image[is_found], wrong_image]) + 1,
        np.concatenate([label[is_found], wrong_label]) + 1,
        boxes,
        np.concatenate(
            [rng.beta(*population.hit_scores, len(iou)), rng.beta(*population.wrong_scores, len(wrong_image))]
        ),
    )
