"""The order of the images, grouped by aspect or not; schedules in epochs and repeats; sizes from a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from runtime.coco import CocoDataset, load_coco
from train import config
from train.build import build_training_batches
from train.config import Config, Schedule
from train.data.augment import draw_short_side
from train.data.loader import TrainingStream
from train.data.sampler import grouped_by_aspect, shuffled
from train.trainer.optim import in_steps

Make = Callable[..., Config]


def portraits(landscape: int, portrait: int) -> np.ndarray:
    kinds = np.array([False] * landscape + [True] * portrait)
    return np.random.default_rng(landscape).permutation(kinds)


def batches_of(is_portrait: np.ndarray, batch: int, epochs: int) -> list[np.ndarray]:
    """All complete batches of some epochs, as kinds of images."""
    run = np.concatenate([is_portrait[grouped_by_aspect(is_portrait, 3, epoch, batch)] for epoch in range(epochs)])
    return [run[first : first + batch] for first in range(0, len(run) - batch + 1, batch)]


CASES = [(1, 0, 4), (3, 2, 16), (70, 30, 8), (64, 64, 16), (5, 90, 7), (100, 0, 16), (0, 10, 3), (33, 31, 1)]


@pytest.mark.parametrize(("landscape", "portrait", "batch"), CASES)
def test_every_epoch_has_every_image_once(landscape: int, portrait: int, batch: int) -> None:
    is_portrait = portraits(landscape, portrait)
    for epoch in range(5):
        order = grouped_by_aspect(is_portrait, 0, epoch, batch)
        assert sorted(order.tolist()) == list(range(landscape + portrait))
        assert np.array_equal(order, grouped_by_aspect(is_portrait, 0, epoch, batch))


@pytest.mark.parametrize(("landscape", "portrait", "batch"), CASES)
def test_at_most_two_batches_of_an_epoch_are_mixed(landscape: int, portrait: int, batch: int) -> None:
    batches = batches_of(portraits(landscape, portrait), batch, epochs=6)
    mixed = sum(len(set(kinds.tolist())) > 1 for kinds in batches)
    assert mixed <= 2 * 6


def test_without_groups_most_batches_are_mixed() -> None:
    """What the test above would see in a plain shuffle."""
    is_portrait = portraits(70, 30)
    run = np.concatenate([is_portrait[shuffled(100, 3, epoch)] for epoch in range(6)])
    batches = run[: len(run) // 8 * 8].reshape(-1, 8)
    assert sum(len(set(kinds.tolist())) > 1 for kinds in batches) > 60


def test_epochs_and_seeds_differ_and_kinds_alternate() -> None:
    is_portrait = portraits(80, 80)
    first = grouped_by_aspect(is_portrait, 0, 0, 8)
    assert not np.array_equal(first, grouped_by_aspect(is_portrait, 0, 1, 8))
    assert not np.array_equal(first, grouped_by_aspect(is_portrait, 1, 0, 8))
    kinds = is_portrait[first].reshape(-1, 8)[:, 0]
    assert 3 < (kinds[1:] != kinds[:-1]).sum() < 17, "one kind after the other would teach them one after the other"


@pytest.fixture
def dataset(small_config: Make) -> CocoDataset:
    """The small data set with the sizes of every third image exchanged, on paper."""
    data = small_config().data
    loaded = load_coco(data.train_json, data.train_images)
    sizes = loaded.sizes_hw.copy()
    sizes[:, 1] += 8
    sizes[::3] = sizes[::3, ::-1]
    return replace(loaded, sizes_hw=sizes)


def test_the_stream_groups_whole_images_and_not_crops(dataset: CocoDataset, small_config: Make) -> None:
    settings = small_config(batch=4)
    stream = TrainingStream(dataset, settings.augment, settings.preprocess, True, 0, group=4)
    is_portrait = dataset.sizes_hw[:, 0] > dataset.sizes_hw[:, 1]
    expected = np.concatenate([grouped_by_aspect(is_portrait, 0, epoch, 4) for epoch in range(3)])
    in_order = [stream.index_of(n, 0) for n in range(3 * len(dataset))]
    assert in_order == expected.tolist()
    assert [stream.index_of(n, 0) for n in reversed(range(3 * len(dataset)))] == in_order[::-1]


def image_ids(settings: Config, first: int = 0, share: int | None = None, rank: int = 0) -> list[list[int]]:
    dataset = load_coco(settings.data.train_json, settings.data.train_images)
    sizes, on_paper = dataset.sizes_hw, dataset.sizes_hw.copy()
    on_paper[::3, 0] += 1
    # The images are square; as their sizes are only compared, a portrait on paper will do, but reading would refuse.
    object.__setattr__(dataset, "sizes_hw", on_paper)
    object.__setattr__(dataset, "image", lambda index: np.zeros((*sizes[index], 3), np.uint8))
    batches = build_training_batches(dataset, settings, first, share, rank)
    return [batch.image_ids for batch in batches]


def test_grouping_is_an_option_that_several_processes_and_resuming_keep(small_config: Make) -> None:
    settings = small_config(batch=4, steps=12)
    whole = replace(settings, augment=replace(settings.augment, crop=(0, 0)))
    plain = replace(whole, data=replace(whole.data, group_by_aspect=False))
    grouped_ids = image_ids(whole)
    assert grouped_ids != image_ids(plain)
    assert image_ids(settings) == image_ids(plain), "crops have one size: no groups"
    assert image_ids(whole, first=5) == grouped_ids[5:]
    parts = [image_ids(whole, share=2, rank=rank) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == grouped_ids


def test_schedules_in_epochs_and_repeats() -> None:
    plain = Schedule()
    assert in_steps(plain, 117_266) == plain
    twice = in_steps(replace(plain, repeat=2.0), 117_266)
    assert (twice.steps, twice.milestones) == (180_000, (120_000, 160_000))
    epochs = in_steps(replace(plain, epochs=12.0, batch=8), 1000)
    assert (epochs.steps, epochs.milestones) == (1500, (1000, 1333))
    both = in_steps(replace(plain, epochs=12.0, repeat=0.5, batch=8), 1000)
    assert (both.steps, both.milestones) == (750, (500, 667))
    assert in_steps(epochs, 1000) == epochs, "a schedule in steps stays as it is"
    assert in_steps(replace(plain, epochs=0.001), 10).steps == 1


def test_short_sides_are_drawn_from_a_list_or_a_range() -> None:
    rng = np.random.default_rng(0)
    listed = config.Augment(short_sides=(400, 640, 800))
    assert {draw_short_side(listed, rng) for _ in range(60)} == {400, 640, 800}
    ranged = {draw_short_side(config.Augment(short_side_min=10, short_side_max=12), rng) for _ in range(60)}
    assert ranged == {10, 11, 12}
