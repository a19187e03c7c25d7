"""What a run says of the weights that it begins with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from train.api import starting_config
from train.checkpoint import read_checkpoint
from train.config import Config
from train.trainer.loop import LAST, train_detector

Make = Callable[..., Config]


@pytest.fixture
def begun(small_config: Make, tmp_path: Path) -> Path:
    """A checkpoint of a run on the shapes."""
    return train_detector(small_config(steps=1), tmp_path / "first").last


@pytest.fixture
def tuned(
    begun: Path, small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, torch.Tensor]]:
    """Fine-tunes with changed categories: what was said, and the class layer's weights."""

    def run(change: Callable[[list[dict[str, Any]]], object]) -> tuple[str, torch.Tensor]:
        before = small_config(steps=1, learning_rate=1e-12).data
        content = json.loads(Path(before.train_json).read_text())
        change(content["categories"])
        (tmp_path / "train.json").write_text(json.dumps(content))
        settings = starting_config(begun)
        settings = replace(
            settings,
            data=replace(before, train_json=str(tmp_path / "train.json")),
            schedule=replace(settings.schedule, learning_rate=1e-12, ema=0.0),
        )
        capsys.readouterr()
        last = train_detector(settings, tmp_path / "tuned").last
        return capsys.readouterr().out, read_checkpoint(last).model["head.class_logits.weight"]

    return run


def weights(path: Path) -> torch.Tensor:
    checkpoint = read_checkpoint(path)
    return (checkpoint.averaged or checkpoint.model)["head.class_logits.weight"]


def test_the_same_classes(begun: Path, tuned: Callable[..., Any]) -> None:
    said, layer = tuned(lambda categories: None)
    assert f"{begun}: all weights are taken over, the class layer's too\n" in said
    torch.testing.assert_close(layer, weights(begun))


def test_other_names(begun: Path, tuned: Callable[..., Any]) -> None:
    names = read_checkpoint(begun).classes.names
    said, layer = tuned(lambda categories: categories[0].update(name="zebra"))
    assert "the class layer's too, though its classes were" in said
    assert f"{len(names)} classes ({', '.join(names[:3])}" in said
    assert f"are now {len(names)} classes (zebra" in said
    torch.testing.assert_close(layer, weights(begun))


def test_another_number_of_classes(begun: Path, tuned: Callable[..., Any], tmp_path: Path) -> None:
    count = len(read_checkpoint(begun).classes.names)
    said, layer = tuned(lambda categories: categories.append({"id": 99, "name": "zebra"}))
    assert f"all weights are taken over but the class layer's, of {count} classes (" in said
    assert f"it starts anew for {count + 1} classes (" in said
    assert layer.shape[0] == count + 1
    assert read_checkpoint(tmp_path / "tuned" / LAST).step == 1
