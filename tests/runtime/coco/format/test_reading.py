"""What tools write otherwise than COCO, read as it was meant: each file beside a plain one of the same meaning."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.coco import CocoDataset, CocoError, load_coco, load_coco_with_truth, load_ground_truth, parse_ground_truth

PLAIN: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 2, "file_name": "b.png", "height": 20, "width": 30},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 5], "area": 100, "iscrowd": 1},
    ],
}
Change = Callable[[dict[str, Any]], Any]


def written(folder: Path, change: Change) -> Path:
    content = copy.deepcopy(PLAIN)
    change(content)
    (folder / "set.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "set.json"


def each(key: str, **changes: Callable[[dict[str, Any]], Any]) -> Change:
    """A change of the fields of every entry."""

    def change(content: dict[str, Any]) -> None:
        for entry in content[key]:
            for name, value in changes.items():
                entry[name] = value(entry)

    return change


def both(*changes: Change) -> Change:
    def change(content: dict[str, Any]) -> None:
        for one in changes:
            one(content)

    return change


def meaning(dataset: CocoDataset) -> list[Any]:
    """All that a data set says, ids aside."""
    found = [dataset.classes, list(dataset.file_names), dataset.sizes_hw.tolist()]
    return [*found, *([part.tolist() for part in dataset.annotations(index)] for index in range(len(dataset)))]


@pytest.mark.parametrize(
    "change",
    [
        each("images", width=lambda image: float(image["width"])),
        each("images", width=lambda image: str(image["width"]), height=lambda image: f"{image['height']}.0"),
        each("images", id=lambda image: float(image["id"])),
        each("annotations", image_id=lambda a: float(a["image_id"]), category_id=lambda a: float(a["category_id"])),
        each("annotations", image_id=lambda a: str(a["image_id"]), category_id=lambda a: f"0{a['category_id']}"),
        each("images", id=lambda image: str(image["id"])),
        each("categories", id=lambda category: str(category["id"])),
        both(
            each("images", id=lambda image: f"scene-{image['id']}"),
            each("annotations", image_id=lambda a: f"scene-{a['image_id']}"),
        ),
        both(
            each("categories", id=lambda category: f"k{category['id']}"),
            each("annotations", category_id=lambda a: f"k{a['category_id']}"),
        ),
        both(
            each("images", id=lambda image: 2**64 - image["id"]),
            each("annotations", image_id=lambda a: str(2**64 - a["image_id"])),
        ),
        both(
            each("images", id=lambda image: image["id"] * 10**400),
            each("annotations", image_id=lambda a: a["image_id"] * 10**400),
        ),
        each("annotations", id=lambda a: f"uuid-{a['id']}"),
        each("annotations", id=lambda a: a["id"] - 1),
        each("annotations", id=lambda a: None),
        lambda content: [a.pop("id") for a in content["annotations"]],
        each("annotations", iscrowd=lambda a: str(a["iscrowd"])),
        each("annotations", iscrowd=lambda a: bool(a["iscrowd"])),
        each("annotations", iscrowd=lambda a: ["False", "true"][a["iscrowd"]]),
        each("annotations", iscrowd=lambda a: float(a["iscrowd"])),
        each("annotations", iscrowd=lambda a: a["iscrowd"] or None),
        each("annotations", iscrowd=lambda a: a["iscrowd"] or float("nan"), ignore=lambda a: float("nan")),
        each("annotations", area=lambda a: float("nan")),
        lambda content: [a.pop("iscrowd") for a in content["annotations"] if not a["iscrowd"]],
        each("annotations", bbox=lambda a: [str(v) for v in a["bbox"]]),
        each("annotations", bbox=lambda a: [f" {v}.0e0" for v in a["bbox"]]),
        each("annotations", area=lambda a: str(a["area"])),
        lambda content: [a.pop("area") for a in content["annotations"]],
        both(
            each("annotations", segmentation=lambda a: _polygon(*a["bbox"])),
            each("annotations", bbox=lambda a: None),
        ),
        both(
            each("annotations", segmentation=lambda a: _code(*a["bbox"])),
            lambda content: [a.pop("bbox") for a in content["annotations"]],
        ),
        both(
            each("annotations", segmentation=lambda a: _polygon(*a["bbox"]), bbox=lambda a: []),
            each("annotations", image_id=lambda a: str(a["image_id"])),
        ),
        each("annotations", ignore=lambda a: 0),
        each("annotations", file_name=lambda a: "a.png", keypoints=lambda a: [1, 2, 2], score=lambda a: 1.0),
        lambda content: content.update(info={"year": 10**400}, licenses=[{"id": 1}], type="instances"),
        lambda content: content["images"].append(dict(content["images"][0])) or content["images"].append(
            content["images"].pop(2)
        ),
    ],
)  # fmt: skip
def test_a_file_means_what_its_plain_form_means(tmp_path: Path, change: Change) -> None:
    plain = load_coco(written(tmp_path, lambda content: None), tmp_path)
    path = written(tmp_path, change)
    dataset, truth = load_coco_with_truth(path, tmp_path)
    assert meaning(dataset) == meaning(plain)
    assert not [line for line in dataset.problems if "read once" not in line]
    ids = set(dataset.image_ids.tolist())
    assert set(truth.image_ids.tolist()) == ids
    by_image = sorted(zip(truth.image_ids[truth.images].tolist(), truth.boxes.tolist(), strict=True))
    order = dataset.image_ids.tolist()
    assert sorted((order.index(image), box) for image, box in by_image) == [
        (0, [1, 2, 3, 4]),
        (0, [10, 10, 20, 5]),
        (1, [5, 6, 7, 8]),
    ]
    # The same from content that was parsed elsewhere, which stays as it is.
    content = json.loads(path.read_text())
    before = json.dumps(content)
    assert parse_ground_truth(content).boxes.tolist() == truth.boxes.tolist()
    assert json.dumps(content) == before


def _polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h], [x, y + h, x + 1, y + h, x, y]]


def _code(x: int, y: int, w: int, h: int) -> dict[str, Any]:
    mask = np.zeros((40, 60), np.uint8)
    mask[y : y + h, x : x + w] = 1
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [40, 60], "counts": np.diff([0, *changes, flat.size]).tolist()}


def test_ids_come_back_as_they_were_written(tmp_path: Path) -> None:
    plain = load_coco(written(tmp_path, lambda content: None), tmp_path)
    assert plain.written_image_ids is None
    assert plain.written_category_ids is None
    assert load_coco(written(tmp_path, each("images", id=lambda i: float(i["id"]))), tmp_path).written_image_ids is None

    def texts(content: dict[str, Any]) -> None:
        each("images", id=lambda image: f"scene-{image['id']}")(content)
        each("categories", id=lambda category: 2**64 - category["id"])(content)

    dataset = load_coco(written(tmp_path, texts), tmp_path)
    assert dataset.written_image_ids == ("scene-1", "scene-2")
    assert dataset.category_ids == (1, 2)
    assert dataset.written_category_ids == (2**64 - 2, 2**64 - 1), "by rising id, as the classes"
    assert dataset.classes == ("dog", "cat")


def test_ids_that_are_one_by_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match=r"set\.json: images: ids 1 and '1' both occur"):
        load_coco(written(tmp_path, lambda c: c["images"][1].update(id="1")), tmp_path)


def test_a_test_set_has_no_annotations(tmp_path: Path) -> None:
    dataset, truth = load_coco_with_truth(written(tmp_path, lambda content: content.pop("annotations")), tmp_path)
    assert len(dataset) == 2
    assert len(dataset.boxes) == len(truth.boxes) == 0
    assert dataset.problems == ()


def test_entries_that_occur_twice_are_read_once(tmp_path: Path) -> None:
    def merged(content: dict[str, Any]) -> None:
        content["images"] *= 2
        content["categories"] *= 2
        content["annotations"] *= 2

    dataset = load_coco(written(tmp_path, merged), tmp_path)
    assert meaning(dataset) == meaning(load_coco(written(tmp_path, lambda content: None), tmp_path))
    assert dataset.problems == (
        "2 × entry of images that occurs more than once, read once: id 1, id 2",
        "2 × entry of categories that occurs more than once, read once: id 1, id 2",
        "3 × annotation that occurs more than once, read once: 1, 2, 3",
    )
    with pytest.raises(CocoError, match="images: id 1 occurs more than once"):
        load_coco(written(tmp_path, lambda c: c["images"].append({**c["images"][0], "file_name": "c.png"})), tmp_path)


def test_regions_to_ignore_are_no_objects(tmp_path: Path) -> None:
    dataset = load_coco(written(tmp_path, lambda c: c["annotations"][0].update(ignore="1")), tmp_path)
    assert dataset.problems == ("1 × ignore 1, a region to ignore and not an object: annotation 1",)
    assert dataset.annotations(0)[2].tolist() == [True, True]
    assert dataset.ignored(0).tolist() == [True, False]
    assert dataset.ignored(1).tolist() == [False]


def test_category_names_may_be_numbers(tmp_path: Path) -> None:
    dataset = load_coco(written(tmp_path, each("categories", name=lambda category: category["id"] + 4)), tmp_path)
    assert dataset.classes == ("5", "6")


def test_ground_truth_needs_neither_names_nor_sizes(tmp_path: Path) -> None:
    def bare(content: dict[str, Any]) -> None:
        content["images"] = [{"id": image["id"]} for image in content["images"]]

    assert len(load_ground_truth(written(tmp_path, bare)).boxes) == 3


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize("missing", [None, 0, "absent"])
def test_sizes_that_entries_lack_are_the_files(tmp_path: Path, missing: Any) -> None:
    def without(content: dict[str, Any]) -> None:
        for image in content["images"]:
            del image["width"], image["height"]
            if missing != "absent":
                image |= {"width": missing, "height": missing}

    picture(tmp_path / "a.png", 40, 60)
    path = written(tmp_path, without)
    dataset = load_coco(path, tmp_path)
    assert dataset.size_hw(0) == (40, 60)
    assert dataset.problems == ("1 × image without width and height whose file can't be read: b.png",)
    assert len(dataset.annotations(1)[0]) == 1, "its objects stay"
    assert dataset.image(0).shape == (40, 60, 3)
    picture(tmp_path / "b.png", 20, 30)
    dataset = load_coco(path, tmp_path)
    assert meaning(dataset) == meaning(load_coco(written(tmp_path, lambda content: None), tmp_path))
    dataset, truth = load_coco_with_truth(written(tmp_path, without), None)
    assert len(dataset.boxes) == len(truth.boxes) == 3
    assert dataset.problems == ()
    with pytest.raises(CocoError, match=r"image 1 has height .* and width .*, expected its size in pixels, and"):
        load_coco(written(tmp_path, without), tmp_path / "elsewhere")


@pytest.mark.parametrize("side", [-1, 1.5, "x", True, 2**40, [3], "60px", pytest.param(10**400, id="huge")])
def test_sizes_that_are_none(tmp_path: Path, side: Any) -> None:
    texts = each("images", id=lambda image: f"scene-{image['id']}")
    path = written(tmp_path, both(texts, lambda content: content["images"][1].update(width=side)))
    with pytest.raises(CocoError, match=r"image 'scene-2' has width .*, expected its size in pixels") as caught:
        load_coco(path, tmp_path)
    assert len(str(caught.value)) < 300


def test_names_stay_distinct_where_an_appended_id_gives_the_name_of_another(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "cat (1)"}]

    dataset = load_coco(written(tmp_path, change), tmp_path)
    assert dataset.classes == ("cat (1) (1)", "cat (2)", "cat (1)")
