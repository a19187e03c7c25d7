"""Boxes of masks against pycocotools and against the pixels themselves; hostile codes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from runtime.coco.format.masks import mask_box


def runs_of(pixels: np.ndarray) -> list[int]:
    """Lengths of the runs, column by column, beginning with a run of zeros."""
    runs, value, length = [], 0, 0
    for pixel in pixels.reshape(-1, order="F").tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


def box_of_pixels(pixels: np.ndarray) -> tuple[float, ...]:
    """The box of the pixels that are not zero."""
    ys, xs = np.nonzero(pixels)
    return (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1) if len(xs) else (0, 0, 0, 0)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 0.95, 1.0])
def test_the_box_of_a_mask_is_that_of_its_pixels(density: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        pixels = np.asfortranarray(rng.random((height, width)) < density).astype(np.uint8, order="F")
        code = mask.encode(pixels)
        assert mask_box(code) == box_of_pixels(pixels) == tuple(mask.toBbox(code))
        assert mask_box({"size": [height, width], "counts": code["counts"].decode()}) == box_of_pixels(pixels)
        assert mask_box({"size": [height, width], "counts": runs_of(pixels)}) == box_of_pixels(pixels)


def test_a_list_of_counts_may_hold_whole_floats_and_empty_runs_and_may_end_early() -> None:
    assert mask_box({"size": [4.0, 5.0], "counts": [5.0, 2, 0, 0, 9]}) == (1, 1, 1, 2)
    assert mask_box({"size": [4, 5], "counts": [5, 1, 0, 1]}) == (1, 1, 1, 2)
    assert mask_box({"size": [4, 5], "counts": []}) == (0, 0, 0, 0)


def test_the_box_of_polygons_spans_their_points() -> None:
    assert mask_box([[10, 20, 30.5, 20, 10, 40], [5, 25, 6, 25, 6, 26]]) == (5, 20, 25.5, 20)
    assert mask_box([10, 20, 30, 20, 30, 50]) == (10, 20, 20, 30)


def test_a_code_of_another_size_than_the_image_is_refused() -> None:
    code = {"size": [4, 5], "counts": [5, 2, 13]}
    assert mask_box(code, (4, 5)) == (1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"5×4, the image 4×5"):
        mask_box(code, (5, 4))


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        7,
        "PPY",
        {},
        [],
        [[]],
        [[1]],
        [[1, 2], 3],
        [[1, 2, "3", 4]],
        [[1, float("nan")]],
        [[1, 10**400]],
        {"size": [4, 5]},
        {"size": [4], "counts": []},
        {"size": [0, 5], "counts": "0"},
        {"size": [-4, 5], "counts": "0"},
        {"size": [2**31, 5], "counts": "0"},
        {"size": [float("inf"), 5], "counts": "0"},
        {"size": [4.5, 5], "counts": "0"},
        {"size": ["4", 5], "counts": "0"},
        {"size": [True, 5], "counts": "0"},
        {"size": [4, 5], "counts": 3},
        {"size": [4, 5], "counts": [21]},
        {"size": [4, 5], "counts": [5, -2, 3]},
        {"size": [4, 5], "counts": [0.5]},
        {"size": [4, 5], "counts": [float("nan")]},
        {"size": [4, 5], "counts": "PPP"},  # says to the end that more characters follow
        {"size": [4, 5], "counts": "oooooooooooo0"},
        {"size": [4, 5], "counts": "é\ud800"},
        {"size": [4, 5], "counts": "O"},
    ],
)
def test_what_is_no_mask_is_refused(damaged: Any) -> None:
    with pytest.raises(ValueError, match=r"mask|polygon|code|size"):
        mask_box(damaged)


def test_random_codes_are_read_or_refused_within_their_image() -> None:
    draw, read = random.Random(5), 0
    for _ in range(20_000):
        text = "".join(chr(draw.choice((48, 50, 79, 80, 111, draw.randrange(200)))) for _ in range(draw.randrange(8)))
        height, width = draw.randrange(-1, 40), draw.randrange(-1, 40)
        try:
            left, top, across, down = mask_box({"size": [height, width], "counts": text})
        except ValueError:
            continue
        assert 0 <= left <= left + across <= width
        assert 0 <= top <= top + down <= height
        read += 1
    assert read > 1000
