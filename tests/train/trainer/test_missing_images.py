"""Images to train on that are missing are noticed before the first step; damaged ones are named once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.coco import CocoDataset, load_coco
from train.config import Config
from train.data.present import FEWEST, are_there, only
from train.trainer.loop import train_detector
from train.trainer.skipped import MOST, Skipped, total

from .test_loop import Make, refusal


@pytest.fixture
def partly(small_config: Make, tmp_path: Path) -> Callable[[int], Config]:
    """Makes a training set of 24 images of which the first so many are there."""

    def make(count: int) -> Config:
        settings = small_config(steps=40)
        (tmp_path / "some").mkdir()
        for path in sorted(Path(settings.data.train_images).iterdir())[:count]:
            shutil.copy(path, tmp_path / "some")
        return replace(settings, data=replace(settings.data, train_images=str(tmp_path / "some")))

    return make


def test_none_is_there(partly: Callable[[int], Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(partly(0), tmp_path / "run")
    assert "none of its 24 images is there, such as" in message
    assert str(tmp_path / "some") in message
    assert "--data.train-images" in message
    assert capsys.readouterr().out == "", "before the first step"


def test_some_are_there(partly: Callable[[int], Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They alone are trained on: 20 missing ones in a row would end the run at any step."""
    settings = partly(2)
    train_detector(settings, tmp_path / "run")
    said = capsys.readouterr().out.splitlines()
    warnings = [line for line in said if line.startswith("warning")]
    assert warnings == said[:1]
    assert "22 of 24 images are missing, such as" in warnings[0]
    assert any("2 images, 40 steps of" in line for line in said)


def test_images_without_objects_alone(partly: Callable[[int], Config], tmp_path: Path) -> None:
    settings = partly(2)
    content = json.loads(Path(settings.data.train_json).read_text())
    empty = {image["id"] for image in content["images"] if (tmp_path / "some" / image["file_name"]).exists()}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in empty]
    (tmp_path / "train.json").write_text(json.dumps(content))
    settings = replace(settings, data=replace(settings.data, train_json=str(tmp_path / "train.json")))
    assert "none of its 19 images with objects is there" in refusal(settings, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_once(
    workers: int, partly: Callable[[int], Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = partly(4)
    bad = sorted((tmp_path / "some").iterdir())[0]
    bad.write_bytes(b"")
    settings = replace(settings, data=replace(settings.data, workers=workers))
    train_detector(settings, tmp_path / "run")  # 20 epochs of 4 images
    said = capsys.readouterr().out
    assert said.count("warning: skipped an image") == said.count(bad.name) == 1
    assert "warning: 1 image could not be read: skipped 20 times" in said


def test_what_is_remembered_has_an_end() -> None:
    skipped, other = Skipped(), Skipped()
    lines = [line for n in range(3 * MOST) for line in skipped.add([f"{n % (MOST + 7)}.jpg: bad"])]
    assert len(lines) == len(skipped.messages) == MOST + 1
    assert "the others are not named" in lines[-1]
    assert list(other.add(["a", "b", "a"])) == ["warning: skipped an image: a", "warning: skipped an image: b"]
    assert "more than 1000 images" in str(total([skipped, other]))
    assert total([other, Skipped(), other]) == "warning: 2 images could not be read: skipped 6 times"
    assert total([Skipped()]) is None


def in_folders(shapes_set: Path, tmp_path: Path, per_folder: int) -> CocoDataset:
    """The training set with its images in folders of so many; of every three images one is missing, one is a link."""
    content = json.loads((shapes_set / "train.json").read_text())
    for place, image in enumerate(content["images"]):
        name = f"{place // per_folder}/{image['file_name']}"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if place % 3 == 0:
            shutil.copy(shapes_set / "train" / image["file_name"], path)
        elif place % 3 == 1:
            path.symlink_to(shapes_set / "train" / image["file_name"])
        elif place % 2:
            path.mkdir()
        image["file_name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    return load_coco(tmp_path / "train.json", tmp_path / "images")


@pytest.mark.parametrize("per_folder", [1, FEWEST, 24])
@pytest.mark.parametrize("others", [0, 700])
def test_all_are_found_that_a_look_finds(per_folder: int, others: int, shapes_set: Path, tmp_path: Path) -> None:
    dataset = in_folders(shapes_set, tmp_path, per_folder)
    for number in range(others):
        (tmp_path / "images" / "0" / f"other{number}").touch()
    expected = [dataset.path(index).is_file() for index in range(len(dataset))]
    assert set(expected) == {True, False}
    assert are_there(dataset, np.arange(len(dataset))).tolist() == expected
    assert are_there(dataset, np.array([5, 3])).tolist() == [expected[5], expected[3]]
    assert are_there(dataset, np.array([], int)).tolist() == []
    shutil.rmtree(tmp_path / "images")
    assert not are_there(dataset, np.arange(len(dataset))).any()


def test_a_part_of_a_data_set_has_its_own_annotations(shapes_set: Path) -> None:
    dataset = load_coco(shapes_set / "train.json", shapes_set / "train")
    kept = np.arange(len(dataset)) % 3 == 1
    part = only(dataset, kept)
    assert len(part) == kept.sum()
    for ours, theirs in enumerate(np.flatnonzero(kept).tolist()):
        assert part.path(ours) == dataset.path(theirs)
        assert part.size_hw(ours) == dataset.size_hw(theirs)
        assert part.image_ids[ours] == dataset.image_ids[theirs]
        for mine, other in zip(part.annotations(ours), dataset.annotations(theirs), strict=True):
            assert np.array_equal(mine, other)
        assert np.array_equal(part.ignored(ours), dataset.ignored(theirs))
    assert len(only(dataset, np.zeros(len(dataset), bool))) == 0
