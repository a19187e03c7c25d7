"""How a data set is named, and where the images of a COCO file are looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.conftest import Make
from train.layouts import LayoutError, find_image_folder, parse_source


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("yolo:{}/data.yaml", ("yolo", "data.yaml", "")),
        ("yolo:{}/data.yaml#test", ("yolo", "data.yaml", "test")),
        ("voc:{}/a#b", ("voc", "a#b", "")),  # the folder is called so
        ("voc:{}/a#b#val", ("voc", "a#b", "val")),
        ("{}/data.yaml", ("yolo", "data.yaml", "")),
        ("{}/set", ("yolo", "set", "")),  # the folder has a data.yaml
        ("{}/set#test", ("yolo", "set", "test")),
        ("{}/train.JSON", ("coco", "train.JSON", "")),
        ("createml:{}/train.JSON", ("createml", "train.JSON", "")),
    ],
)
def test_names_of_sources(given: str, expected: tuple[str, str, str], text: Make, tmp_path: Path) -> None:
    text("data.yaml", "")
    text("set/data.yml", "")
    text("train.JSON", "")
    (tmp_path / "a#b").mkdir()
    found = parse_source(given.format(tmp_path))
    assert (found.layout, found.path.relative_to(tmp_path).as_posix(), found.split) == expected
    assert parse_source(str(found)) == found


def test_the_home_folder(text: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells expand ~ at the beginning of a word alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = text("data.yaml", "")
    assert parse_source("yolo:~/data.yaml#test") == ("yolo", path, "test")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "does not say how the data set is laid out"),
        ("{}", "does not say how the data set is laid out; expected one of yolo:PATH, voc:PATH"),
        ("kitti:{}", "does not say how"),
        ("yolo:", "there is no"),
        ("yolo:{}/none.yaml", "there is no .*none.yaml; expected yolo:PATH"),
        ("{}/none.json", "there is no"),
        ("yolo:a\0b", "there is no"),
        (f"yolo:{'a' * 5000}", "there is no"),
    ],
)
def test_what_names_no_source(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=message):
        parse_source(given.format(tmp_path))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("train.json", "."),
        ("_annotations.coco.json", "."),
        ("annotations.json", "images"),
        ("train.json", "train"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/train.json", "images"),
    ],
)
def test_the_images_of_a_coco_file(file: str, folder: str, picture: Make, text: Make, tmp_path: Path) -> None:
    names = ["sub/größe 1.jpg", "b.jpg"]
    content = {"images": [{"id": n, "file_name": name} for n, name in enumerate(names)]}
    path = text(file, json.dumps(content))
    with pytest.raises(LayoutError, match="its images are in none of"):
        find_image_folder(path)
    for name in names:
        picture(f"{folder}/{name}")
    assert find_image_folder(path) == (tmp_path / folder).resolve()
