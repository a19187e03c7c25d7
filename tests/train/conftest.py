"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.manifest import Preprocess
from train import config, shapes
from train.config import Config
from train.config.recipes import atss_tiny

Make = Callable[..., Path]


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


@pytest.fixture
def picture(tmp_path: Path) -> Make:
    """Writes an image file below the test's folder, 80 × 60 px unless told otherwise, and returns its path."""

    def write(name: str, width: int = 80, height: int = 60, shade: int = 90) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((height, width, 3), shade, np.uint8))
        return path

    return write


@pytest.fixture
def text(tmp_path: Path) -> Make:
    """Writes a text file below the test's folder and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
