"""Boxes follow their images: a bright rectangle is painted, the image changed, and its pixels looked for."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.manifest import Preprocess
from train import config
from train.data.augment import (
    Sample,
    augment,
    choose,
    flip_horizontal,
    flip_vertical,
    jitter_colour,
    random_crop,
    rescale,
    training_hw,
    transpose,
)

PRE = Preprocess(short_side=120, long_side=200)


def painted(rng: np.random.Generator, height: int = 90, width: int = 140, boxes: int = 1) -> Sample:
    """A dark image with rectangles in the channels red, green, blue; their boxes."""
    image = np.zeros((height, width, 3), np.uint8)
    found = []
    for channel in range(boxes):
        x1, y1 = rng.integers(0, width - 20), rng.integers(0, height - 20)
        x2, y2 = rng.integers(x1 + 10, width + 1), rng.integers(y1 + 10, height + 1)
        image[y1:y2, x1:x2, channel] = 255
        found.append([x1, y1, x2, y2])
    return Sample(image, np.array(found, np.float32).reshape(-1, 4), np.arange(boxes, dtype=np.int64))


def augmented(sample: Sample, settings: config.Augment, pre: Preprocess, rng: np.random.Generator) -> Sample:
    """A random variant, as training takes it."""
    choices = choose(settings, rng)
    size_hw = training_hw((sample.image.shape[0], sample.image.shape[1]), choices.short_side, pre)
    return augment(sample, choices, size_hw, settings, pre, rng)


def extent(image: np.ndarray, channel: int) -> list[float] | None:
    """Extent of what is at least half bright."""
    ys, xs = np.nonzero(image[..., channel] >= 128)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None


def assert_boxes_fit(sample: Sample, tolerance: float) -> None:
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        found = extent(sample.image, int(label))
        assert found is not None, f"box {box} holds nothing"
        np.testing.assert_allclose(box, found, atol=tolerance)


@pytest.mark.parametrize("change", [flip_horizontal, flip_vertical, transpose])
def test_exact_changes(change) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        sample = painted(rng, boxes=3)
        before = sample.boxes.copy()
        changed = change(sample)
        assert_boxes_fit(changed, 0)
        assert (sample.boxes == before).all(), "the input is left alone"
        again = change(changed)
        assert (again.image == sample.image).all()
        assert (again.boxes == sample.boxes).all()


@pytest.mark.parametrize("change", [flip_horizontal, flip_vertical, transpose])
def test_images_without_boxes(change) -> None:
    empty = change(painted(np.random.default_rng(0), boxes=0))
    assert empty.boxes.shape == (0, 4)
    assert augmented(empty, config.Augment(crop=(64, 64)), PRE, np.random.default_rng(0)).boxes.shape == (0, 4)


def test_rescaling() -> None:
    rng = np.random.default_rng(1)
    for size in ((45, 70), (90, 140), (200, 150), (31, 333)):
        sample = rescale(painted(rng), size)
        assert sample.image.shape == (*size, 3)
        assert sample.boxes.dtype == np.float32
        assert_boxes_fit(sample, 1.01)


def test_crops_move_and_clip_boxes() -> None:
    rng = np.random.default_rng(2)
    kept = 0
    for _ in range(60):
        sample = painted(rng, boxes=3)
        cropped = random_crop(sample, (64, 80), 0.0, rng)
        assert cropped.image.shape == (64, 80, 3)
        assert_boxes_fit(cropped, 0)
        seen = {c for c in range(3) if extent(cropped.image, c) is not None}
        assert set(cropped.labels.tolist()) == seen, "what is on the image has its box"
        kept += len(cropped.boxes)
    assert 60 < kept < 180


def test_a_crop_larger_than_the_image_keeps_it_whole() -> None:
    sample = painted(np.random.default_rng(3))
    cropped = random_crop(sample, (500, 500), 0.3, np.random.default_rng(0))
    assert (cropped.image == sample.image).all()
    assert (cropped.boxes == sample.boxes).all()


def test_hardly_visible_boxes_are_dropped() -> None:
    """A box of 40 × 40 whose right part is cut away by crops at known places."""
    image, labels = np.zeros((100, 100, 3), np.uint8), np.zeros(1, np.int64)
    box = np.array([[60, 60, 100, 100]], np.float32)

    class AtOrigin:
        def integers(self, low: int, high: int) -> int:
            return 0

    for side, visible in ((100, 1.0), (90, 0.5625), (80, 0.25), (70, 0.0625)):
        for least in (0.0, 0.3, 0.6):
            kept = random_crop(Sample(image, box, labels), (side, side), least, AtOrigin())  # type: ignore[arg-type]
            assert len(kept.boxes) == (visible >= least), f"{visible} visible, {least} asked for"
    sliver = random_crop(Sample(image, box + 0.5, labels), (61, 100), 0.0, AtOrigin())  # type: ignore[arg-type]
    assert len(sliver.boxes) == 0, "less than a pixel is no example"


SETTINGS = config.Augment(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    transpose=0.5,
    short_side_min=80,
    short_side_max=160,
    crop=(96, 112),
    min_visible=0.3,
)


def test_combinations() -> None:
    rng = np.random.default_rng(4)
    shapes, kept = set(), 0
    for seed in range(150):
        sample = augmented(painted(rng, boxes=3), SETTINGS, PRE, np.random.default_rng(seed))
        height, width = sample.image.shape[:2]
        assert height <= 96
        assert width <= 112
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= [width, height]).all()
        assert_boxes_fit(sample, 2.0)
        shapes.add((height, width))
        kept += len(sample.boxes)
    assert kept > 150
    assert len(shapes) > 5


def test_equal_generators_give_equal_samples_and_others_others() -> None:
    settings = config.Augment(**{**SETTINGS.__dict__, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2})
    sample = painted(np.random.default_rng(5), boxes=3)
    first, second, other = (augmented(sample, settings, PRE, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (first.image == second.image).all()
    assert (first.boxes == second.boxes).all()
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_the_longer_side_is_limited_in_proportion() -> None:
    settings = config.Augment(horizontal_flip=0, short_side_min=60, short_side_max=60)
    thin = Sample(np.zeros((20, 200, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert augmented(thin, settings, PRE, np.random.default_rng(0)).image.shape == (20, 200, 3)
    large = config.Augment(horizontal_flip=0, short_side_min=240, short_side_max=240)
    assert augmented(thin, large, PRE, np.random.default_rng(0)).image.shape == (40, 400, 3)


def test_without_scale_jitter_training_resizes_as_deployment_does() -> None:
    from runtime.images.preprocess import make_batch

    image = np.random.default_rng(6).integers(0, 256, (77, 131, 3), dtype=np.uint8)
    settings = config.Augment(horizontal_flip=0, short_side_min=PRE.short_side, short_side_max=PRE.short_side)
    sample = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    trained = augmented(sample, settings, PRE, np.random.default_rng(0)).image
    deployed = make_batch([image], PRE).images[0]
    assert (deployed[: trained.shape[0], : trained.shape[1]] == trained).all()


def test_colour_jitter_equals_the_formula() -> None:
    image = np.random.default_rng(7).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    settings = config.Augment(brightness=0.1, contrast=0.3, saturation=0.4)
    found = jitter_colour(image, settings, np.random.default_rng(8))
    rng = np.random.default_rng(8)
    contrast, saturation, shift = 1 + 0.3 * rng.uniform(-1, 1), 1 + 0.4 * rng.uniform(-1, 1), 25.5 * rng.uniform(-1, 1)
    for y in range(9):
        for x in range(11):
            pixel = image[y, x].astype(float)
            grey = pixel.mean()
            expected = contrast * (grey + saturation * (pixel - grey) - 127.5) + 127.5 + shift
            np.testing.assert_allclose(found[y, x], expected.clip(0, 255), atol=1)  # OpenCV rounds coefficients


def test_no_colour_jitter_returns_the_image() -> None:
    image = np.zeros((3, 3, 3), np.uint8)
    assert jitter_colour(image, config.Augment(), np.random.default_rng(0)) is image
