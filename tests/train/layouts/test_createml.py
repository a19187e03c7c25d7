"""CreateML: boxes by their centres; names that stay in the file's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import Make
from train.layouts import LabeledSet, LayoutError, parse_source, read_source


def read(path: Path, split: str = "train") -> LabeledSet:
    return read_source(parse_source(f"createml:{path}"), split)


def item(label: Any, *numbers: Any) -> dict[str, Any]:
    return {"label": label, "coordinates": dict(zip(("x", "y", "width", "height"), numbers, strict=False))}


def boxes(found: LabeledSet) -> dict[str, list[tuple[object, ...]]]:
    names = found.categories
    return {image.path.name: [(names[o.category_id], *o.box) for o in image.objects] for image in found.images}


def test_centres_and_sizes(picture: Make, text: Make) -> None:
    picture("a.jpg")
    picture("images/b.jpg")
    content = [
        {"image": "a.jpg", "annotations": [item("dog", 40, 30, 20, 10), item(7, 1, 1, 2, 2)]},
        {"image": "b.jpg", "annotations": []},
    ]
    found = read(text("all.json", json.dumps(content)))
    assert boxes(found) == {"a.jpg": [("dog", 30, 25, 50, 35), ("7", 0, 0, 2, 2)], "b.jpg": []}
    assert (found.categories, found.problems) == ({1: "7", 2: "dog"}, ())


def test_roboflows_folders(picture: Make, text: Make, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(f"{split}/{split}.jpg")
        text(f"{split}/_annotations.createml.json", json.dumps([{"image": f"{split}.jpg", "annotations": []}]))
    assert list(boxes(read(tmp_path))) == ["train.jpg"]
    assert list(boxes(read(tmp_path, "val"))) == ["valid.jpg"]


def test_what_is_dropped_is_said(picture: Make, text: Make) -> None:
    picture("set/a.jpg")
    picture("secret.jpg")
    objects = [item("dog", 40, 30, 20), item("", 1, 1, 2, 2), item("dog", 40, 30, float("nan"), 3), "x", None]
    objects += [item("dog", 40, 30, 10**400, 3), item("dog", 400, 30, 5, 5), item("dog", 40, 30, -5, 5)]
    content = [
        {"image": "a.jpg", "annotations": objects},
        {"image": "../secret.jpg", "annotations": []},
        {"image": "/etc/hostname"},
        {"image": "C:\\a.jpg"},
        {"image": "missing.jpg"},
        {"annotations": []},
        {"image": "a.jpg", "annotations": [item("dog", "40", "30.0", "2e1", 10)]},
        {"image": "a.jpg", "annotations": item("dog", 40, 30, 20, 10)},
    ]
    found = read(text("set/all.json", json.dumps(content)))
    assert boxes(found) == {"a.jpg": [("dog", 30, 25, 50, 35)]}
    assert [line.partition(": ")[0] for line in found.problems] == [
        "3 × object whose coordinates are not x, y, width and height, dropped",
        "3 × object without a label, dropped",
        "1 × box outside its image, dropped",
        "1 × box of zero or negative size, dropped",
        "3 × image whose name leads out of the file's folder, left out",
        "1 × image that cannot be read, left out",
        "1 × entry without the name of an image, left out",
        "1 × image listed more than once, taken once with all its objects",
        "1 × image whose annotations are no list, left out",
    ]


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[[]]", "[" * 100_000, '{"images": []}'])
def test_what_is_no_createml(content: str, text: Make) -> None:
    with pytest.raises(LayoutError):
        read(text("all.json", content))
    with pytest.raises(LayoutError, match="no image is left"):
        read(text("all.json", "[]"))


def test_fractions_in_the_place_of_pixels_are_said(picture: Make, text: Make) -> None:
    """Label tools offer CreateML with normalised coordinates, which Create ML itself doesn't write."""
    picture("a.jpg")
    for numbers, count in (((0.5, 0.5, 0.2, 0.3), 1), ((5, 5, 2, 3), 0)):
        found = read(text("all.json", json.dumps([{"image": "a.jpg", "annotations": [item("dog", *numbers)]}])))
        assert sum("as fractions of the image's sides do" in line for line in found.problems) == count
