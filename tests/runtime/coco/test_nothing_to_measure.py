"""A data set without an object that counts: the terminal says so and shows no figure; JSON keeps pycocotools' −1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.coco import CocoDataset
from runtime.coco.command import main

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
    assert "-1" not in printed.replace(str(tmp_path.parent), "")
    assert json.loads(out.read_text())["AP"] == -1
    both = [str(models["fp32"]), str(models["small"])]
    assert main([*both, *arguments(dataset, "--json", out)]) == 0
    printed = capsys.readouterr().out
    assert "nothing to measure: no object that counts" in printed
    assert "-1" not in printed.replace(str(tmp_path.parent), "")
    assert {model["difference"]["AP"] for model in json.loads(out.read_text())["artifacts"]} == {None}


def test_objects_are_measured(
    dataset: CocoDataset, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(models["fp32"]), *arguments(dataset)]) == 0
    assert "nothing to measure: " not in capsys.readouterr().out
