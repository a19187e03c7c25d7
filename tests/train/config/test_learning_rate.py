"""A batch other than the recipe's needs another learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from train.config import Config
from train.config.learning_rate import unmatched_learning_rate
from train.config.recipes import RECIPES, atss_r50_fpn_1x, atss_tiny
from train.trainer.loop import train_detector


@pytest.mark.parametrize(
    ("recipe", "changes", "given"),
    [
        ("atss_r50_fpn_1x", {"batch": 4}, "the linear rule gives --schedule.learning-rate 0.0025"),
        ("atss_r50_fpn_1x", {"batch": 64}, "--schedule.learning-rate 0.04"),
        ("atss_tiny", {"batch": 4}, "the square-root rule gives --schedule.learning-rate 0.001"),
        ("atss_tiny", {"batch": 64}, "--schedule.learning-rate 0.004"),
    ],
)
def test_the_rate_to_give(recipe: str, changes: dict[str, int], given: str) -> None:
    config = RECIPES[recipe]()
    line = unmatched_learning_rate(replace(config, schedule=replace(config.schedule, **changes)))
    assert line is not None
    assert given in line
    assert f"{recipe}'s for batches of {config.schedule.batch}" in line
    advised = float(line.split()[-1])
    matched = replace(config.schedule, learning_rate=advised, **changes)
    assert unmatched_learning_rate(replace(config, schedule=matched)) is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_matches_itself(name: str) -> None:
    assert unmatched_learning_rate(RECIPES[name]()) is None


def test_what_says_nothing() -> None:
    sgd, adamw = atss_r50_fpn_1x(), atss_tiny()
    for config, changes in (
        (sgd, {"batch": 15}),
        (adamw, {"batch": 12}),
        (sgd, {"batch": 4, "learning_rate": 0.3}),
        (sgd, {"batch": 4, "optimizer": "adamw"}),
    ):
        assert unmatched_learning_rate(replace(config, schedule=replace(config.schedule, **changes))) is None
    unknown = replace(sgd, recipe="mine", schedule=replace(sgd.schedule, batch=1))
    assert unmatched_learning_rate(unknown) is None


def test_a_run_begins_with_a_note_and_without_a_warning(
    small_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who looks for warnings looks for what is wrong with the data; nothing is wrong here."""
    train_detector(small_config(batch=2, steps=2), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("note: the learning rate 0.002 is atss_tiny's")]) == 1
    assert not [line for line in lines if "warning" in line.lower()]
