from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.detections import Detections, empty_detections
from runtime.draw import class_color, draw, draw_side_by_side, draw_truth, encode_jpeg
from runtime.images import decode
from runtime.lettering import draw_text, spelled

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


@pytest.mark.parametrize("corner", [1e6, 1e10, 1e30, np.inf])
def test_a_box_as_large_as_may_be(corner: float) -> None:
    """Its edges lie outside: it looks like any box that ends there."""
    expected = draw(GREY, one((50, 40, 5_000, 5_000)), CLASSES)
    np.testing.assert_array_equal(draw(GREY, one((50, 40, corner, corner)), CLASSES), expected)
    np.testing.assert_array_equal(
        draw(GREY, one((-corner, -corner, corner, corner)), CLASSES),
        draw(GREY, one((-5_000, -5_000, 5_000, 5_000)), CLASSES),
    )
    np.testing.assert_array_equal(draw(GREY, one((corner, corner, corner, corner)), CLASSES), GREY)


def test_a_box_of_no_number_is_not_drawn() -> None:
    np.testing.assert_array_equal(draw(GREY, one((np.nan, 0, 50, 50)), CLASSES), GREY)


NAMES = (
    *("猫科", "犬科", "日本語", "한국어", "кошка", "собака", "γάτα", "قطة", "كلب", "חתול"),
    *("बिल्ली", "कुत्ता", "แมว", "สุนัข", "😀", "🚗", "👍🏽", "👍🏿", "é", "è", "ა", "ბ", "cat 猫", "cat 犬"),
    *("a\x1bb", "a\x1cb", "a\nb", "\u202eab", "\udce9", "\udce8"),
)


def distinct(names: tuple[str, ...]) -> int:
    box, large = np.array([[40.0, 60.0, 300.0, 180.0]]), np.zeros((200, 900, 3), np.uint8)
    return len({draw_truth(large, box, np.array([0]), [name]).tobytes() for name in names})


def test_names_in_any_script_differ() -> None:
    assert distinct(NAMES) == len(NAMES)
    boxes = tuple(chr(code) for code in range(0xE000, 0xE020))  # private letters: no usual font has them
    assert distinct(boxes) == len(boxes)


BARE = """
import sys, cv2
from runtime import lettering
lettering.FOLDERS = ()
if hasattr(cv2, "FontFace"): del cv2.FontFace
from tests.runtime.test_draw import NAMES, distinct
assert distinct(NAMES) == len(NAMES)
"""


def test_names_differ_on_a_machine_without_fonts(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=repository, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: no font here has the letters ")
    assert "Traceback" not in done.stderr


def test_a_text_mixes_fonts_and_code_points() -> None:
    """What is spelled is as wide as its code points; the rest of the text stays."""
    narrow, _ = draw_text("é", 20, (0, 0, 0), (255, 255, 255))
    wide, _ = draw_text("é\ue000", 20, (0, 0, 0), (255, 255, 255))
    assert wide.shape[1] > narrow.shape[1] + 4 * 8
    assert spelled("a é \ue000") == "a é U+E000" or "é" not in spelled("é")


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
