"""Weighted precision and recall: weights of 1 give scoring's numbers, others those of pycocotools on copied images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.analysis.selection import select
from runtime.analysis.weighted import sort_matches, weighted_precision_recall
from runtime.coco import parse_ground_truth, parse_results, scoring
from runtime.detection_filter import KEEP_ALL

from ..coco.test_coco_score import AWKWARD, by_pycocotools, make


def weighted(content: dict, results: list[dict], weights: np.ndarray) -> list[scoring.PrecisionRecall]:
    """The numbers of all categories, by row of `weights` [B, I]."""
    found = parse_results(results, "results")
    selection = select(parse_ground_truth(content), None, KEEP_ALL)
    matches = selection.matches(found)
    count, classes = len(weights), len(selection.measured)
    precision, recall = np.full((count, 10, 101, classes, 4), -1.0), np.full((count, 10, classes, 4, 3), -1.0)
    for category in np.flatnonzero(selection.measured):
        own = selection.objects.categories == category
        images, sizes = selection.objects.images[own], selection.sizes[own]
        of_category = sort_matches(matches, int(category), images, sizes)
        precision[..., category, :], recall[:, :, category] = weighted_precision_recall(of_category, weights)
    return [scoring.PrecisionRecall(*pair) for pair in zip(precision, recall, strict=True)]


def copies(content: dict, results: list[dict], weights: np.ndarray) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data set with as many copies of each image as its weight says, under ids in the order of the images."""
    ids = sorted(image["id"] for image in content["images"])
    new_ids = {
        old: [row * 1000 + n + 1 for n in range(weight)]
        for row, (old, weight) in enumerate(zip(ids, weights.tolist(), strict=True))
    }
    images = [{**image, "id": new} for image in content["images"] for new in new_ids[image["id"]]]
    annotations = [{**row, "image_id": new} for row in content["annotations"] for new in new_ids[row["image_id"]]]
    annotations = [{**row, "id": number} for number, row in enumerate(annotations, start=1)]
    found = [{**row, "image_id": new} for row in results for new in new_ids[row["image_id"]]]
    return {**content, "images": images, "annotations": annotations}, found


def without_ties_in_an_image(results: list[dict]) -> list[dict]:
    """Of equal scores of an image and category only the first; those of several images stay equal."""
    return list({(row["image_id"], row["category_id"], row["score"]): row for row in reversed(results)}.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", AWKWARD)
def test_weights_of_one_give_the_scores_bit_for_bit(kind: str, seed: int) -> None:
    content, results = make(kind, seed)
    expected = scoring.precision_recall(parse_ground_truth(content), parse_results(results, "results"))
    (found,) = weighted(content, results, np.ones((1, len(content["images"])), np.uint8))
    np.testing.assert_array_equal(found.precision, expected.precision)
    np.testing.assert_array_equal(found.recall, expected.recall)
    assert scoring.metric_values(found) == scoring.metric_values(expected)


@pytest.mark.parametrize("kind", AWKWARD)
def test_weights_count_as_copies_of_the_images_do(kind: str) -> None:
    content, results = make(kind, 4)
    results = without_ties_in_an_image(results)
    weights = np.random.default_rng(1).integers(0, 4, (3, len(content["images"]))).astype(np.uint8)
    weights[2] = 0
    weights[2, 5] = 7
    for row, found in zip(weights, weighted(content, results, weights), strict=True):
        reference = by_pycocotools(*copies(content, results, row))
        np.testing.assert_array_equal(found.precision, reference.eval["precision"][..., -1])
        np.testing.assert_array_equal(found.recall[..., -1], reference.eval["recall"][..., -1])
        np.testing.assert_array_equal(found.recall[:, :, 0], reference.eval["recall"][:, :, 0])
        assert list(scoring.metric_values(found).values()) == reference.stats.tolist()


def test_other_weights_give_other_numbers() -> None:
    content, results = make("plain", 4)
    weights = np.ones((2, len(content["images"])), np.uint8)
    weights[1, 0] = 2
    first, second = (scoring.metric_values(found) for found in weighted(content, results, weights))
    assert first != second


def test_a_batch_of_resamples_equals_its_singles() -> None:
    content, results = make("crowds", 2)
    weights = np.random.default_rng(2).integers(0, 3, (5, len(content["images"]))).astype(np.uint8)
    for row, found in zip(weights, weighted(content, results, weights), strict=True):
        (single,) = weighted(content, results, row[None])
        np.testing.assert_array_equal(found.precision, single.precision)
        np.testing.assert_array_equal(found.recall, single.recall)


def test_without_weight_nothing_is_measured() -> None:
    content, results = make("plain", 1)
    (found,) = weighted(content, results, np.zeros((1, len(content["images"])), np.uint8))
    assert set(scoring.metric_values(found).values()) == {-1.0}
