"""What training says about its data set before it begins, and which files it may read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import UserError
from runtime.records import record_from_dict
from train.config import Config, Data
from train.trainer.start import load_datasets

Make = Callable[..., Config]


def changed(folder: Path, key: str, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    content = json.loads((folder / "train.json").read_text())
    content[key] = [entry | change(number, entry) for number, entry in enumerate(content[key])]
    (folder / "train.json").write_text(json.dumps(content))


def on(folder: Path, settings: Config, **data: Any) -> Config:
    images = {"train_json": str(folder / "train.json"), "train_images": str(folder / "train")}
    return replace(settings, data=replace(settings.data, **images, **data))


@pytest.mark.parametrize("every", [True, False])
def test_crowds_are_named(every: bool, own_copy: Path, small_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    changed(own_copy, "annotations", lambda number, _: {"iscrowd": int(every or number < 2)})
    settings = on(own_copy, small_config())
    data = settings.data
    settings = replace(settings, data=replace(data, val_json=data.train_json, val_images=data.train_images))
    train_set, val_set = load_datasets(settings, report=True)
    said = capsys.readouterr().out
    assert val_set is not None
    if every:
        assert not train_set.crowd.any()
        assert val_set.crowd.all(), "scored as pycocotools scores it"
        assert f"all {len(train_set.crowd)} annotations have iscrowd 1, as CVAT writes masks" in said
    else:
        assert train_set.crowd.sum() == val_set.crowd.sum() == 2
        assert f"2 of {len(train_set.crowd)} annotations have iscrowd 1: crowds" in said
    load_datasets(settings, report=False)
    assert capsys.readouterr().out == ""


def test_files_outside_need_a_word(own_copy: Path, small_config: Make) -> None:
    (own_copy / "train").rename(own_copy / "elsewhere")
    (own_copy / "train").mkdir()
    changed(own_copy, "images", lambda _, image: {"file_name": f"../elsewhere/{image['file_name']}"})
    with pytest.raises(UserError, match=r"which leads out of the image folder .* --data\.allow-outside"):
        load_datasets(on(own_copy, small_config()), report=False)
    train_set, _ = load_datasets(on(own_copy, small_config(), allow_outside=True), report=False)
    assert train_set.path(0).exists()


def test_checkpoints_from_before_the_option_are_read() -> None:
    fields = {name: value for name, value in vars(Data(train_json="a.json")).items() if name != "allow_outside"}
    assert record_from_dict(Data, fields, "old.pt") == Data(train_json="a.json")
