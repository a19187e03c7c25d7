"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.manifest import Preprocess
from train import config, shapes
from train.config import Config
from train.config.recipes import atss_tiny


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads only cost time on networks this small, and one thread gives the same sums every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shapes_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small data set of 64 px images, 24 to train on and 4 to evaluate on."""
    out = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(out, shapes.Settings(train=24, val=4, seed=5, size=64), progress=False)
    return out


@pytest.fixture(scope="session")
def small_config(shapes_set: Path) -> Callable[..., Config]:
    """Makes configurations of a detector so narrow that a step takes milliseconds; arguments change the schedule."""

    def make(**schedule: object) -> Config:
        recipe = atss_tiny()
        return replace(
            recipe,
            preprocess=Preprocess(short_side=64, long_side=96),
            model=replace(
                recipe.model,
                backbone=config.Backbone("resnet18", weights="none", stem_channels=8),
                pyramid=config.Pyramid(channels=16),
                head=config.Head(convolutions=1, group_norm_groups=4),
            ),
            augment=config.Augment(short_side_min=56, short_side_max=80, crop=(64, 64), brightness=0.1),
            data=config.Data(
                train_json=str(shapes_set / "train.json"), train_images=str(shapes_set / "train"), workers=0
            ),
            schedule=replace(recipe.schedule, **{"steps": 6, "batch": 2, "warmup_steps": 2, **schedule}),
            run=replace(recipe.run, device="cpu", precision="fp32", log_every=1, checkpoint_every=3),
        )

    return make
