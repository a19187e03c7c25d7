from __future__ import annotations

import numpy as np
import pytest

from runtime.detections import Detections, empty_detections
from runtime.draw import class_color, draw, draw_side_by_side, draw_truth, encode_jpeg
from runtime.images import decode

CLASSES = ("cat", "größe")
GREY = np.full((120, 200, 3), 90, np.uint8)


def one(box: tuple[float, ...], score: float = 0.9, label: int = 0) -> Detections:
    return Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([label], np.int32))


def test_nothing_to_draw_is_a_copy() -> None:
    drawn = draw(GREY, empty_detections(), CLASSES)
    np.testing.assert_array_equal(drawn, GREY)
    assert not np.shares_memory(drawn, GREY)


def test_a_boxs_edges_lie_on_its_border_pixels() -> None:
    drawn = draw(GREY, one((50, 40, 100, 90)), CLASSES)
    assert (GREY == 90).all()
    for y, x in ((70, 50), (70, 99), (89, 60), (89, 99)):
        assert tuple(drawn[y, x]) == class_color(0)
    assert (drawn[41:89, 51:99] == 90).all()  # nothing inside
    assert (drawn[:, 100 + 60 :] == 90).all()


def test_scores_below_the_least_are_left_out() -> None:
    np.testing.assert_array_equal(draw(GREY, one((5, 5, 9, 9), 0.2), CLASSES, 0.3), GREY)


@pytest.mark.parametrize("box", [(-50, -50, 500, 500), (0, 0, 0, 0), (199.5, 119.5, 200, 120), (0, 0, 200, 3)])
@pytest.mark.parametrize("shape", [(120, 200, 3), (1, 1, 3)])
def test_odd_boxes_and_sizes_and_letters(box: tuple[float, ...], shape: tuple[int, ...]) -> None:
    image = np.full(shape, 90, np.uint8)
    assert draw(image, one(box, label=1), CLASSES).shape == shape


def test_side_by_side() -> None:
    boxes, labels = np.array([[10, 10, 60, 60]]), np.array([1])
    both = draw_side_by_side(GREY, one((50, 40, 100, 90)), boxes, labels, CLASSES)
    heading = both.shape[0] - 120
    np.testing.assert_array_equal(both[heading:, :200], draw(GREY, one((50, 40, 100, 90)), CLASSES))
    np.testing.assert_array_equal(both[heading:, -200:], draw_truth(GREY, boxes, labels, CLASSES))
    assert (both[:heading] < 100).any()  # a heading is written


def test_colours_of_neighbouring_classes_differ() -> None:
    colors = np.array([class_color(label) for label in range(80)])
    assert len(np.unique(colors, axis=0)) == 80
    assert np.abs(np.diff(colors, axis=0)).max(1).min() > 80


def test_jpeg_keeps_the_channels_in_order() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 200
    assert np.abs(decode(encode_jpeg(image)).astype(int) - image).max() <= 4
