from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from runtime.errors import UserError
from runtime.images.preprocess import Geometry, boxes_to_canvas, boxes_to_image, make_batch, plan, resize, resize_scale
from runtime.manifest import Preprocess

PRE = Preprocess(short_side=60, long_side=100)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear by the formula: half-pixel centres, edges repeated."""
    out = np.zeros((height, width, 3))
    h, w = image.shape[:2]
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * h / height - 0.5, (j + 0.5) * w / width - 0.5
            for dy in (0, 1):
                for dx in (0, 1):
                    yy, xx = math.floor(y) + dy, math.floor(x) + dx
                    weight = (1 - abs(y - yy)) * (1 - abs(x - xx))
                    out[i, j] += weight * image[min(max(yy, 0), h - 1), min(max(xx, 0), w - 1)]
    return out


@pytest.mark.parametrize(
    ("image_hw", "expected"),
    [
        ((480, 640), (800, 1067)),  # 640 · 800 / 480 = 1066.7
        ((640, 480), (1067, 800)),
        ((500, 1000), (667, 1333)),  # the longer side limits
        ((800, 1333), (800, 1333)),
        ((1, 1), (800, 800)),
        ((1, 10_000), (1, 1333)),  # never below one pixel
        ((10_000, 3), (1333, 1)),
    ],
)
def test_size_keeps_the_aspect(image_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_scale(image_hw, 800, 1333) == expected


def test_size_never_exceeds_the_limits() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 5000, (500, 2)).tolist():
        resized = resize_scale((height, width), 800, 1333)
        assert min(resized) <= 800
        assert max(resized) <= 1333
        assert min(resized) == 800 or max(resized) == 1333


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(UserError, match="5×0"):
        resize_scale((0, 5), 800, 1333)


def test_plan_rounds_the_canvas_up() -> None:
    assert plan((480, 640), Preprocess(800, 1333)) == Geometry((480, 640), (800, 1067), (800, 1088))
    assert plan((480, 640), Preprocess(800, 1333, size_divisor=128)).canvas_hw == (896, 1152)


def test_resize_is_bilinear() -> None:
    for size_hw in ((17, 23), (31, 9), (5, 5)):
        assert np.abs(resize(noise(13, 11), size_hw) - slow_resize(noise(13, 11), *size_hw)).max() <= 1
    image = noise(6, 7)
    assert resize(image, (6, 7)) is image


def test_batch_lays_images_top_left_and_pads_the_rest() -> None:
    images = [noise(60, 80), noise(30, 40, 1), noise(100, 50, 2)]
    batch = make_batch(images, PRE)
    assert batch.images.shape == (3, 128, 96, 3)  # 60×80, 60×80, 100×50 → a common canvas
    assert batch.images.dtype == np.uint8
    assert batch.image_sizes.dtype == np.int32
    assert batch.image_sizes.tolist() == [[60, 80], [60, 80], [100, 50]]
    for canvas, image, (height, width) in zip(batch.images, images, batch.image_sizes, strict=True):
        expected = np.tile(np.array(PRE.pad_value, np.uint8), (128, 96, 1))
        expected[:height, :width] = cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(canvas, expected)
    assert batch.geometries[1] == Geometry((30, 40), (60, 80), (128, 96))


def test_a_batch_equals_its_images_one_by_one() -> None:
    images = [noise(60, 80, seed) for seed in range(3)]
    batch = make_batch(images, PRE)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(make_batch([image], PRE).images[0], batch.images[index])


def test_a_given_canvas() -> None:
    assert make_batch([noise(60, 80)], PRE, (64, 160)).images.shape == (1, 64, 160, 3)
    assert make_batch([], PRE, (64, 96)).images.shape == (0, 64, 96, 3)
    assert make_batch([], PRE, (64, 96)).image_sizes.shape == (0, 2)
    with pytest.raises(UserError, match=r"image 1 is 50×100 after resizing .* does not fit the canvas of 96×64"):
        make_batch([noise(60, 80), noise(100, 50)], PRE, (64, 96))
    with pytest.raises(UserError, match="empty batch"):
        make_batch([], PRE)


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (np.zeros((5, 5), np.uint8), r"uint8 \[5, 5\]"),
        (np.zeros((5, 5, 4), np.uint8), r"uint8 \[5, 5, 4\]"),
        (np.zeros((5, 5, 3), np.float32), r"float32 \[5, 5, 3\]"),
        ("x.jpg", "str"),
    ],
)
def test_other_types_are_refused(image: object, given: str) -> None:
    with pytest.raises(UserError, match=rf"image 1 is {given}, expected uint8 \[height, width, 3\]"):
        make_batch([noise(5, 5), image], PRE)  # type: ignore[list-item]


def test_boxes_of_nothing() -> None:
    geometry = plan((480, 640), PRE)
    assert boxes_to_canvas(np.zeros((0, 4)), geometry).shape == (0, 4)
    assert boxes_to_image(np.zeros((0, 4)), geometry).shape == (0, 4)


def test_boxes_there_and_back() -> None:
    rng = np.random.default_rng(0)
    for image_hw in ((480, 640), (37, 91), (1000, 13)):
        geometry = plan(image_hw, PRE)
        corners = rng.uniform(0, 1, (50, 2, 2)) * [image_hw[1], image_hw[0]]
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
        again = boxes_to_image(boxes_to_canvas(boxes, geometry), geometry)
        assert again.dtype == np.float32
        np.testing.assert_allclose(again, boxes, atol=1e-3)


def test_the_whole_image_maps_to_its_part_of_the_canvas() -> None:
    geometry = plan((37, 91), PRE)  # scales differ by the rounding
    whole = boxes_to_canvas(np.array([[0, 0, 91, 37]]), geometry)
    np.testing.assert_allclose(whole, [[0, 0, geometry.resized_hw[1], geometry.resized_hw[0]]], rtol=1e-6)


def test_boxes_are_clipped_to_the_image() -> None:
    geometry = Geometry((10, 20), (20, 40), (32, 64))
    found = boxes_to_image(np.array([[-5, -5, 100, 100], [50, 0, 60, 4]]), geometry)
    assert found.tolist() == [[0, 0, 20, 10], [20, 0, 20, 2]]


def test_a_bright_rectangle_is_found_where_its_box_says() -> None:
    image = np.zeros((50, 70, 3), np.uint8)
    image[10:30, 20:60] = 255
    batch = make_batch([image], Preprocess(200, 400))
    (x1, y1, x2, y2), mask = (
        boxes_to_canvas(np.array([[20, 10, 60, 30]]), batch.geometries[0])[0],
        batch.images[0, ..., 0],
    )
    mask = mask[: batch.image_sizes[0, 0], : batch.image_sizes[0, 1]] > 127
    ys, xs = np.nonzero(mask)
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [x1, y1, x2, y2], atol=1)
