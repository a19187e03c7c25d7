"""A model's classes are matched by name with a data set's; ids, order and further classes do not matter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runtime.coco import CocoDataset, CocoError, load_coco
from runtime.coco.classes import match_classes
from runtime.coco.command import main
from runtime.coco.evaluation import score_detector
from runtime.detector import Detector

from ...support.fakes import RedBackend, manifest_with
from .test_evaluate import make_dataset

MODEL = {1: "red", 2: "green", 3: "blue"}


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return make_dataset(tmp_path)


def with_categories(dataset: CocoDataset, names: dict[int, str]) -> CocoDataset:
    """The data set with other categories; all its annotations are of the first."""
    content = json.loads(dataset.json_path.read_text())
    content["categories"] = [{"id": category_id, "name": name} for category_id, name in names.items()]
    for annotation in content["annotations"]:
        annotation["category_id"] = next(iter(names))
    dataset.json_path.write_text(json.dumps(content))
    return load_coco(dataset.json_path, dataset.root)


def test_equal_classes_have_no_differences() -> None:
    match = match_classes(MODEL, dict(reversed(MODEL.items())), "val.json")
    assert match.category_ids == (1, 2, 3)
    assert match.differences == ()


@pytest.mark.parametrize(
    ("theirs", "category_ids", "lines"),
    [
        ({3: "red", 1: "green", 2: "blue"}, (3, 1, 2), ["3 classes have other ids there, matched by name: red 1 → 3"]),
        ({1: "red"}, (1, None, None), ["2 classes of the model are no categories there, .*: green, blue"]),
        ({1: "red", 2: "green", 3: "blue", 4: "tree"}, (1, 2, 3), ["1 class there is unknown to the model, .*: tree"]),
        ({1: "Red", 2: "GREEN ", 3: "blue"}, (1, 2, 3), ["2 classes are written otherwise there, .*: red → Red"]),
        ({1: "Red", 4: "RED", 2: "green", 3: "blue"}, (None, 2, 3), ["no category there", "unknown to the model"]),
        ({1: "Red", 4: "red", 2: "green", 3: "blue"}, (4, 2, 3), ["red 1 → 4", "1 class there is unknown .*: Red"]),
        ({1: "rose", 2: "red", 9: "blue"}, (2, None, 9), ["red 1 → 2, blue 3 → 9", ": green", ": rose"]),
    ],
)
def test_classes_are_matched_by_name(
    theirs: dict[int, str], category_ids: tuple[int | None, ...], lines: list[str]
) -> None:
    match = match_classes(MODEL, theirs, "val.json")
    assert match.category_ids == category_ids
    assert len(match.differences) == len(lines)
    for line, expected in zip(match.differences, lines, strict=True):
        assert line.startswith("val.json: ")
        assert re.search(expected, line), line


def test_a_name_that_occurs_twice_is_matched_by_its_id_alone() -> None:
    assert match_classes({1: "a", 2: "a", 3: "b"}, {2: "a", 5: "a", 9: "b"}, "val.json").category_ids == (None, 2, 9)


def test_no_class_in_common() -> None:
    message = r"val.json: no category there is a class of the model \(classes: red, green, blue; categories: tree\)"
    with pytest.raises(CocoError, match=message):
        match_classes(MODEL, {1: "tree"}, "val.json")


def test_ids_do_not_change_the_figures(dataset: CocoDataset) -> None:
    detector = Detector(RedBackend())
    reference = score_detector(detector, dataset)
    assert reference.metrics.values["AP"] > 0.5, "else this shows little"
    swapped = score_detector(detector, with_categories(dataset, {9: "red", 7: "other"}))
    assert swapped.metrics.values == reference.metrics.values
    assert swapped.metrics.per_class == reference.metrics.per_class
    other = {7: 9, 9: 7}
    assert {row["category_id"] for row in reference.results} == other.keys()
    assert [*swapped.results] == [{**row, "category_id": other[row["category_id"]]} for row in reference.results]
    assert "matched by name: red 7 → 9, other 9 → 7" in swapped.metrics.problems[0]


def test_a_class_that_the_data_set_lacks_is_left_out_and_named(dataset: CocoDataset) -> None:
    reference = score_detector(Detector(RedBackend()), dataset)
    unknown = score_detector(Detector(RedBackend(manifest_with(classes=("green", "other")))), dataset)
    assert set(unknown.results.category_ids.tolist()) == {9}, "green is left out"
    assert unknown.metrics.values["AP"] == 0
    assert len(unknown.metrics.problems) == 2
    fewer = score_detector(Detector(RedBackend()), with_categories(dataset, {7: "red"}))
    assert fewer.metrics.values == reference.metrics.values
    assert [*fewer.results] == [row for row in reference.results if row["category_id"] == 7]
    assert "1 class of the model is no category there" in fewer.metrics.problems[0]


def test_the_command_says_the_differences(
    dataset: CocoDataset, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with_categories(dataset, {1: "red", 2: "tree"})
    base = ["--annotations", str(dataset.json_path), "--images", str(dataset.root), "--backend", "cpu"]
    out = tmp_path / "results.json"
    assert main([str(models["fp32"]), *base, "--results-out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "1 class has other ids there, matched by name: red 7 → 1" in said
    assert "1 class of the model is no category there, its detections do not count: other" in said
    assert "1 class there is unknown to the model, its objects count as missed: tree" in said
    assert {row["category_id"] for row in json.loads(out.read_text())} == {1}
    assert main(["--results", str(out), *base[:2]]) == 0
    assert capsys.readouterr().err == ""


def test_ids_that_are_texts_are_shown_as_the_file_has_them() -> None:
    match = match_classes(MODEL, {1: "blue", 2: "red", 3: "green"}, "val.json", written=["b", "r", "g"])
    assert match.category_ids == (2, 3, 1)
    assert match.differences[0].endswith("matched by name: red 1 → r, green 2 → g, blue 3 → b")
    assert match_classes(MODEL, MODEL, "val.json", written=["r", "g", "b"]).differences == ()
