"""A data set without an object that counts: the terminal says so and shows no figure; JSON keeps pycocotools' −1."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime.coco import CocoDataset, CocoError
from runtime.coco.command import main
from runtime.coco.evaluation import evaluate

from .test_evaluate import make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


def arguments(dataset: CocoDataset, *more: object) -> list[str]:
    given = ["--annotations", dataset.json_path, "--images", dataset.root, "--threads", 1, "--backend", "cpu", *more]
    return list(map(str, given))


def without_objects(dataset: CocoDataset, kind: str) -> None:
    content = json.loads(dataset.json_path.read_text())
    changed = {"crowds": {"iscrowd": 1}, "regions to ignore": {"ignore": 1}}
    content["annotations"] = [{**a, **changed[kind]} for a in content["annotations"] if kind in changed]
    dataset.json_path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["no annotation", "crowds", "regions to ignore"])
def test_nothing_to_measure(
    kind: str, dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_objects(dataset, kind)
    out = tmp_path / "f.json"
    assert main([str(models["fp32"]), *arguments(dataset, "--json", out)]) == 0
    printed = capsys.readouterr().out
    assert "nothing to measure: no object that counts" in printed
    assert not re.search(r"(?<!\w)-1", printed)
    assert json.loads(out.read_text())["AP"] == -1
    both = [str(models["fp32"]), str(models["small"])]
    assert main([*both, *arguments(dataset, "--json", out)]) == 0
    printed = capsys.readouterr().out
    assert "nothing to measure: no object that counts" in printed
    assert not re.search(r"(?<!\w)-1", printed)
    assert {model["difference"]["AP"] for model in json.loads(out.read_text())["artifacts"]} == {None}


def test_objects_are_measured(
    dataset: CocoDataset, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(models["fp32"]), *arguments(dataset)]) == 0
    assert "nothing to measure: " not in capsys.readouterr().out


def test_annotations_that_are_all_unusable_are_an_error(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path
) -> None:
    """Not the same as a set without objects: the file's author meant to have some."""
    content = json.loads(dataset.json_path.read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = "a.jpg"
    dataset.json_path.write_text(json.dumps(content))
    count = len(content["annotations"])
    with pytest.raises(CocoError, match=rf"none of its {count} annotations can be used: {count} × unknown image"):
        main([str(models["fp32"]), *arguments(dataset, "--json", tmp_path / "f.json")])
    with pytest.raises(CocoError, match="unknown image"):
        evaluate(models["fp32"], dataset.json_path, dataset.root)
    assert not (tmp_path / "f.json").exists()
