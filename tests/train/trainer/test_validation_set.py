"""Validation sets that differ from the training set in their categories, or have no object."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.checkpoint import read_checkpoint
from train.config import Config
from train.plot import plot_run
from train.trainer.loop import BEST, train_detector

from .test_loop import Make, lines, refusal, with_run, with_validation


def with_categories(settings: Config, path: Path, change: Callable[[list[dict[str, Any]]], object]) -> Config:
    """The settings with a validation file whose categories were changed; the annotations keep their names."""
    content = json.loads(Path(settings.data.val_json).read_text())
    before = {category["id"]: category["name"] for category in content["categories"]}
    change(content["categories"])
    ids = {category["name"]: category["id"] for category in content["categories"]}
    annotations = [a for a in content["annotations"] if before[a["category_id"]] in ids]
    content["annotations"] = [{**a, "category_id": ids[before[a["category_id"]]]} for a in annotations]
    path.write_text(json.dumps(content))
    return replace(settings, data=replace(settings.data, val_json=str(path)))


def swap_ids(categories: list[dict[str, Any]]) -> None:
    """Give the categories other ids, in another order."""
    ids = [category["id"] for category in categories]
    for category, number in zip(categories, reversed(ids), strict=True):
        category["id"] = number
    categories.reverse()


def test_validation_categories_are_matched_by_name(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = with_validation(small_config(steps=1))
    plain = train_detector(settings, tmp_path / "run")
    said = capsys.readouterr().out
    assert "warning" not in said
    swapped = with_categories(settings, tmp_path / "swapped.json", swap_ids)
    result = train_detector(swapped, tmp_path / "swapped")
    assert "have other ids there, matched by name" in capsys.readouterr().out
    assert result.ap == plain.ap is not None
    assert lines(tmp_path / "swapped", "val") == lines(tmp_path / "run", "val")
    fewer = with_categories(settings, tmp_path / "fewer.json", lambda categories: categories.pop())
    assert train_detector(fewer, tmp_path / "fewer").ap is not None
    assert "1 class of the training set is no category there" in capsys.readouterr().out
    more = with_categories(settings, tmp_path / "more.json", lambda c: c.append({"id": 99, "name": "zebra"}))
    assert train_detector(more, tmp_path / "more").ap is not None
    assert "1 class there is unknown to the training set, its objects count as missed: zebra" in capsys.readouterr().out


def test_validation_of_other_classes_alone_is_refused(small_config: Make, tmp_path: Path) -> None:
    settings = with_validation(small_config())

    def rename(categories: list[dict[str, Any]]) -> None:
        for category in categories:
            category["name"] = f"zebra {category['id']}"

    other = with_categories(settings, tmp_path / "val.json", rename)
    assert "no category there is a class of the training set" in refusal(other, tmp_path / "run")
    assert not [path.name for path in (tmp_path / "run").rglob("*") if path.suffix in (".pt", ".jsonl")]


@pytest.mark.parametrize("crowds", [False, True])
def test_a_validation_set_without_objects_measures_nothing(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], crowds: bool
) -> None:
    settings = with_validation(small_config(steps=2))
    content = json.loads(Path(settings.data.val_json).read_text())
    content["annotations"] = [{**a, "iscrowd": 1} for a in content["annotations"] if crowds]
    (tmp_path / "val.json").write_text(json.dumps(content))
    settings = replace(settings, data=replace(settings.data, val_json=str(tmp_path / "val.json")))
    result = train_detector(with_run(settings, evaluate_every=1), tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("nothing to measure") == 3, "before the training and at both evaluations"
    assert "AP " not in said
    assert (result.ap, result.best, result.best_ap) == (None, None, None)
    assert not (tmp_path / "run" / BEST).exists()
    assert read_checkpoint(result.last).ap is None
    assert [line["AP"] for line in lines(tmp_path / "run", "val")] == [-1, -1], "as pycocotools says it"
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert not [tag for tag in board.Tags()["scalars"] if tag.startswith("val/")]
    assert plot_run(tmp_path / "run").exists()


def test_validation_images_that_are_not_there(
    small_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: an error before the training. Some: their number is said beside the AP that leaves them out."""
    settings = with_validation(small_config(steps=1))
    (tmp_path / "images").mkdir()
    settings = replace(settings, data=replace(settings.data, val_images=str(tmp_path / "images")))
    assert "none of its 4 images is there" in refusal(settings, tmp_path / "run")
    assert "steps of" not in capsys.readouterr().out, "before the first step"
    content = json.loads(Path(settings.data.val_json).read_text())
    name = content["images"][0]["file_name"]
    (tmp_path / "images" / name).write_bytes((Path(settings.data.val_json).parent / "val" / name).read_bytes())
    train_detector(settings, tmp_path / "other")
    said = capsys.readouterr().out
    assert "warning: 3 of 4 images are left out of the score, the first: " in said
    before, _ = said.split("steps of")
    assert f"3 of 4 images are missing, such as {tmp_path / 'images'}" in before
    assert "(check --data.val-images)" in before
