from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from runtime.detections import Detections, RawOutputs, postprocess
from runtime.manifest import Thresholds
from runtime.nms import iou_matrix, nms


def slow_iou(a, b) -> float:
    """By the definition, in Python floats."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, x[2] - x[0]) * max(0.0, x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def slow_nms(boxes, scores, classes, threshold: float, most: int) -> list[int]:
    """Greedy NMS as the textbook has it: take the best remaining, strike out what it covers."""
    remaining, kept = list(range(len(boxes))), []
    while remaining and len(kept) < most:
        best = max(remaining, key=lambda i: (scores[i], -i))
        kept.append(best)
        remaining = [
            i
            for i in remaining
            if i != best and not (classes[i] == classes[best] and slow_iou(boxes[i], boxes[best]) > threshold)
        ]
    return kept


def scene(seed: int, count: int, classes: int, side: float = 100.0):
    """Random clustered boxes; coordinates on an eighth of a pixel, so that float32 has them exactly."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, side, (max(1, count // 6), 2))
    centre = centres[rng.integers(len(centres), size=count)] + rng.normal(0, 3, (count, 2))
    size = rng.uniform(4, 40, (count, 2))
    boxes = np.round(np.concatenate([centre - size / 2, centre + size / 2], 1) * 8) / 8
    scores = np.round(rng.uniform(0, 1, count), 2)  # many ties
    return boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, classes, count).astype(np.int32)


def test_iou_of_nothing() -> None:
    assert iou_matrix(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    assert iou_matrix(np.zeros((2, 4)), np.zeros((0, 4))).shape == (2, 0)


def test_iou_equals_the_definition() -> None:
    a, b = scene(0, 20, 1)[0], scene(1, 30, 1)[0]
    expected = [[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    np.testing.assert_allclose(iou_matrix(a, b), expected, rtol=1e-5)


def test_iou_of_boxes_without_area_is_zero() -> None:
    point = np.array([[5, 5, 5, 5]])
    assert iou_matrix(point, point)[0, 0] == 0
    assert iou_matrix(point, [[0, 0, 9, 9]])[0, 0] == 0
    assert iou_matrix([[5, 5, 2, 2]], [[0, 0, 9, 9]])[0, 0] == 0  # inside out


def test_nms_of_nothing() -> None:
    kept = nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0), 0.6, 100)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64
    assert nms(*scene(0, 5, 1), 0.6, 0).shape == (0,)


@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("threshold", [0.3, 0.6])
@pytest.mark.parametrize("most", [5, 1000])
def test_nms_equals_the_slow_one(classes: int, threshold: float, most: int) -> None:
    for seed in range(12):
        boxes, scores, labels = scene(seed, [1, 2, 17, 120][seed % 4], classes)
        expected = slow_nms(boxes.tolist(), scores.tolist(), labels.tolist(), threshold, most)
        assert nms(boxes, scores, labels, threshold, most).tolist() == expected


def test_nms_of_many_equals_the_slow_one() -> None:
    """Enough that they are worked through in several pieces, with suppression across them."""
    boxes, scores, labels = scene(5, 900, 2, side=300)
    expected = slow_nms(boxes.tolist(), scores.tolist(), labels.tolist(), 0.4, 10_000)
    assert nms(boxes, scores, labels, 0.4, 10_000).tolist() == expected
    assert nms(boxes, scores, labels, 0.4, 100).tolist() == expected[:100]
    assert max(np.argsort(np.argsort(-scores, kind="stable"))[expected]) > 600  # some of the last are kept


def test_equal_scores_keep_the_lower_index() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    assert nms(boxes, np.full(3, 0.5), np.zeros(3), 0.6, 100).tolist() == [0]
    assert nms(boxes, np.full(3, 0.5), np.array([1, 0, 2]), 0.6, 100).tolist() == [0, 1, 2]


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 4, 1], [0, 0, 2, 1]], np.float32)  # IoU 0.5
    assert nms(boxes, np.array([0.9, 0.8]), np.zeros(2), 0.5, 100).tolist() == [0, 1]
    assert nms(boxes, np.array([0.9, 0.8]), np.zeros(2), 0.49, 100).tolist() == [0]


def test_a_suppressed_box_suppresses_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], np.float32)  # neighbours overlap by 0.54
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3), 0.5, 100).tolist() == [0, 2]


def test_five_thousand_candidates_take_milliseconds() -> None:
    boxes, scores, labels = scene(3, 5000, 80, side=1000)
    nms(boxes, scores, labels, 0.6, 100)
    started = time.process_time()  # whatever else the machine does
    nms(boxes, scores, labels, 0.6, 100)
    assert time.process_time() - started < 0.5  # about 0.02 s; a double loop takes seconds


def raw_outputs(scenes, rows: int = 100, exact: int = 0) -> RawOutputs:
    """Contract outputs holding the scenes as candidates, padded; the detection rows are rubbish unless exact."""
    most = max(len(scores) for _, scores, _ in scenes) + 3
    raw = RawOutputs(
        np.zeros((len(scenes), 1), np.int32),
        np.full((len(scenes), rows, 4), 1e6, np.float32),
        np.full((len(scenes), rows), 1e6, np.float32),
        np.full((len(scenes), rows), 77, np.int32),
        np.full((len(scenes), 1), exact, np.int32),
        np.zeros((len(scenes), most, 4), np.float32),
        np.zeros((len(scenes), most), np.float32),
        np.full((len(scenes), most), -1, np.int32),
    )
    for index, (boxes, scores, classes) in enumerate(scenes):
        place = slice(2, 2 + len(scores))  # unused rows at both ends
        raw.candidate_boxes[index, place] = boxes
        raw.candidate_scores[index, place] = scores
        raw.candidate_classes[index, place] = classes
    return raw


def same(a: Detections, b: Detections) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Detections))


def test_finish_of_an_empty_batch_and_of_images_without_candidates() -> None:
    raw = raw_outputs([scene(0, 0, 1)])
    assert postprocess(RawOutputs(*(getattr(raw, f.name)[:0] for f in dataclasses.fields(raw))), Thresholds()) == []
    (found,) = postprocess(raw, Thresholds())
    assert found.boxes.shape == (0, 4)
    assert len(found) == 0


def test_an_inexact_image_is_rerun_as_greedy_nms() -> None:
    scenes = [scene(seed, 90, 3) for seed in range(5)]
    scenes = [(boxes, np.maximum(scores, np.float32(0.01)), classes) for boxes, scores, classes in scenes]
    for found, (boxes, scores, classes) in zip(postprocess(raw_outputs(scenes), Thresholds()), scenes, strict=True):
        rows = slow_nms(boxes.tolist(), scores.tolist(), classes.tolist(), 0.6, 100)
        assert same(found, Detections(boxes[rows], scores[rows], classes[rows]))


def test_a_batch_equals_its_images_one_by_one() -> None:
    scenes = [scene(seed, 40, 2) for seed in range(3)]
    together = postprocess(raw_outputs(scenes), Thresholds(detections=10))
    alone = [postprocess(raw_outputs([one]), Thresholds(detections=10))[0] for one in scenes]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    assert max(len(found) for found in together) == 10


def test_exact_rows_are_taken_as_they_are_and_do_not_hold_the_batch() -> None:
    raw = raw_outputs([scene(0, 9, 1), scene(1, 9, 1)], exact=1)
    raw.num_detections[:] = [[2], [0]]
    raw.detection_boxes[0, :2] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    raw.detection_scores[0, :2] = [0.9, 0.8]
    raw.detection_classes[0, :2] = [1, 0]
    first, second = postprocess(raw, Thresholds())
    assert first.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert first.classes.tolist() == [1, 0]
    assert len(second) == 0
    assert not np.shares_memory(first.boxes, raw.detection_boxes)
    assert (first.boxes.dtype, first.scores.dtype, first.classes.dtype) == (np.float32, np.float32, np.int32)


def test_each_image_has_its_own_flag() -> None:
    raw = raw_outputs([scene(0, 20, 1), scene(0, 20, 1)])
    raw.nms_exact[0] = 1
    exact, rerun = postprocess(raw, Thresholds())
    assert len(exact) == 0
    assert len(rerun) > 0
