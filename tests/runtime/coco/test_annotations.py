"""Packed annotations against a slow reader that goes over plain JSON objects, on entries of every kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import CocoError, load_coco_with_truth
from runtime.coco.dataset import parse_dataset
from runtime.coco.format import read_coco_json
from runtime.coco.ground_truth import parse_ground_truth

# Half of the entries take one of these values in place of a usable one.
ODD: dict[str, list[Any]] = {
    "image_id": [99, "1", 1.0, True, None, 2**63, -(2**63), 10**400, [1]],
    "category_id": [4, "17", None, False, 2**64],
    "bbox": [
        ["1", "2.5", " 3e1", "+4"], [1, 2, 3, "0x4"],
        [], None, "1 2 3 4", [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, True, 4], [1, 2, 3, None],
        [1, 2, 0, 4], [1, 2, 3, -4], [1, 2, 3, 10**400], [1e31, 2, 3, 4], [math.nan, 2, 3, 4], [1, 2, math.inf, 4],
        [1, 2, 1e-40, 4], [700, 2, 3, 4], [-20, 2, 20, 4], [-20, 2, 21, 4], [1, 479.99999999, 3, 4], [1, 2, 9, 2**60],
    ],
    "area": [None, "5", True, -3, 0, math.nan, math.inf, 10**400, 2**70, 2.5],
    "iscrowd": [1, True, None, "1", "0", " False", "TRUE", 0.0, 1.0],
    "ignore": [0, 1, None, "1", "false", True],
    "id": ["a", None, 1.5, 2**63, -(2**63), 10**400, True, [3]],
    "file_name": ["x.jpg"],
    "segmentation": [[[1, 2, 3, 4, 5, 6]], [], "rle"],
}  # fmt: skip
SIZES_HW = {1: (480, 640), 7: (100, 50), -3: (480, 640)}


def entries(seed: int, count: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        box = (
            [float(v) for v in rng.uniform(1, 40, 4)]
            if rng.random() < 0.5
            else [int(v) for v in rng.integers(1, 40, 4)]
        )
        entry: dict[str, Any] = {
            "id": number,
            "image_id": int(rng.choice(list(SIZES_HW))),
            "category_id": int(rng.choice([17, 3])),
            "bbox": box,
        }
        if rng.random() < 0.5:
            name = str(rng.choice(list(ODD)))
            entry[name] = ODD[name][rng.integers(len(ODD[name]))]
        if rng.random() < 0.2:
            del entry[str(rng.choice(list(entry)))]
        made.append(entry)
    seen: set[str] = set()  # equal ids are refused as a whole
    return [e for e in made if "id" not in e or not (repr(e["id"]) in seen or seen.add(repr(e["id"])))]  # type: ignore[func-returns-value]


def content(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "height": h, "width": w, "file_name": f"{i}.jpg"} for i, (h, w) in SIZES_HW.items()],
        "annotations": annotations,
        "categories": [{"id": 17, "name": "b"}, {"id": 3, "name": "a"}],
    }


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def meant(value: Any, known: list[int]) -> int | None:
    """The id that a reference means, by value."""
    texts = {str(one): one for one in known}
    if isinstance(value, str):
        return texts.get(value)
    return int(value) if number(value) and value in known else None


def as_number(value: Any) -> float | None:
    """A number, also of a text."""
    if isinstance(value, str) and set(value) <= set("0123456789+-.e "):
        value = float(value)
    return float(value) if number(value) and abs(value) <= 1e30 else None


def slowly(annotation: dict[str, Any]) -> str | tuple[list[float], list[float], float, bool, bool]:
    """What is wrong with an annotation, or its box as annotated, clipped xyxy, area, and flags: crowd and ignore."""
    for name, known in (("image", list(SIZES_HW)), ("category", [3, 17])):
        if meant(annotation.get(f"{name}_id"), known) is None:
            return f"unknown {name}"
    box = annotation.get("bbox")
    if not box:
        if annotation.get("segmentation") != [[1, 2, 3, 4, 5, 6]]:
            return "neither a bbox nor a mask that can be read"
        box = [1, 2, 4, 4]
    if not isinstance(box, list) or len(box) != 4 or not all(number(v) or as_number(v) for v in box):
        return "bbox that is not four numbers"
    if None in (box := [as_number(v) for v in box]):
        return "box that is not finite"
    x, y, w, h = box
    height, width = SIZES_HW[meant(annotation["image_id"], list(SIZES_HW))]
    clipped = [float(np.float32(v)) for v in (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))]
    area = as_number(annotation.get("area"))
    crowd, ignore = (
        str(annotation.get(name)).strip().lower() in ("1", "1.0", "true") for name in ("iscrowd", "ignore")
    )
    return box, clipped, max(w, 0.0) * max(h, 0.0) if area is None else area, crowd, ignore


def without_ids(line: str) -> tuple[str, str]:
    """A line about unknown images or categories without the ids in its brackets, and these ids; "" in other lines."""
    for name in ("image", "category"):
        if f"× unknown {name}:" in line:
            head, _, ids = line.partition(f" ({name}_id ")
            assert "; the file's " in ids, line
            return head, ids.partition("; the file's ")[0]
    return line, ""


def named(annotation: dict[str, Any], place: int) -> str:
    given = annotation.get("id")
    if type(given) is int and abs(given) > 1e300:
        given = "a number of about 401 digits"
    return f"annotation number {place + 1}" if given is None else f"annotation {given}"


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_the_slow_reader_finds_the_same(seed: int, by_file: bool, tmp_path: Path) -> None:
    annotations = entries(seed)
    path = tmp_path / "a.json"
    if by_file:
        path.write_text(json.dumps(content(annotations)))
        dataset, truth = load_coco_with_truth(path, tmp_path)
    else:
        before = json.dumps(annotations)
        dataset = parse_dataset(content(annotations), path, tmp_path)
        truth = parse_ground_truth(content(annotations))
        assert json.dumps(annotations) == before, "the caller's entries stay as they were"

    problems: dict[str, list[str]] = {}
    areas: dict[str, list[str]] = {"area that is no finite number": [], "area outside 0–1e10": []}
    rows, seen = [], []
    for place, annotation in enumerate(annotations):
        found = slowly(annotation)
        if isinstance(found, str):
            problems.setdefault(found, []).append(named(annotation, place))
            continue
        where = (meant(annotation["image_id"], list(SIZES_HW)), meant(annotation["category_id"], [3, 17]))
        box, clipped, area, crowd, ignore = found
        rows.append((where, box, area, crowd or ignore))
        given, who = annotation.get("area"), named(annotation, place)
        if as_number(given) is None and given is not None and given == given:
            areas["area that is no finite number"].append(who)
        if not 0 <= (as_number(given) or 0) <= 1e10:
            areas["area outside 0–1e10"].append(who)
        if min(box[2:]) <= 0:  # an object that is missed, and nothing to learn
            problems.setdefault("box of zero or negative size", []).append(named(annotation, place))
        elif clipped[2] > clipped[0] and clipped[3] > clipped[1]:
            seen.append((where, clipped, crowd or ignore))
            if ignore:
                kind = "ignore 1, a region to ignore and not an object"
                problems.setdefault(kind, []).append(named(annotation, place))
        else:
            problems.setdefault("box outside the image", []).append(named(annotation, place))

    lines = [
        f"{len(names)} × {kind}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for kind, names in problems.items()
    ]
    listed = dict(map(without_ids, dataset.problems))
    for name, known in (("image", list(SIZES_HW)), ("category", [3, 17])):
        unknown = [one.get(f"{name}_id") for one in annotations if meant(one.get(f"{name}_id"), known) is None]
        whole = {repr(one) for one in unknown if type(one) is int and abs(one) < 2**60}
        for line, ids in listed.items():
            if f"× unknown {name}:" in line:
                texts = {repr(one) for one in unknown if isinstance(one, str)}
                assert " in all)" in ids or {*whole, *texts} <= set(ids.split(", "))
    said = {line.partition("× ")[2].partition(" px²")[0].partition(",")[0]: line for line in dataset.problems}
    for kind, names in areas.items():
        assert (kind in said) is bool(names)
        if names:
            assert said[kind].startswith(f"{len(names)} × ")
            assert said[kind].endswith(f": {', '.join(names[:5])}{' …' if len(names) > 5 else ''}")
    assert [line for line in listed if "× area " not in line] == lines
    assert len(lines) >= 3, "else this shows little"
    seen.sort(key=lambda one: list(SIZES_HW).index(one[0][0]))
    for index, image_id in enumerate(SIZES_HW):
        boxes, labels, crowd_flags = dataset.annotations(index)
        ours = [one for one in seen if one[0][0] == image_id]
        assert boxes.tolist() == [clipped for _, clipped, _ in ours]
        assert labels.tolist() == [(3, 17).index(where[1]) for where, _, _ in ours]
        assert crowd_flags.tolist() == [crowd for _, _, crowd in ours]
    rows.sort(key=lambda one: one[0])
    places = zip(truth.image_ids[truth.images].tolist(), truth.category_ids[truth.categories].tolist(), strict=True)
    assert list(places) == [where for where, *_ in rows]
    assert truth.boxes.tolist() == [box for _, box, _, _ in rows]
    assert truth.areas.tolist() == [area for *_, area, _ in rows]
    assert truth.crowd.tolist() == [crowd for *_, crowd in rows]


@pytest.mark.parametrize("name", ["a\0b.json", "\ud800.json"])
def test_a_name_that_no_file_can_have_is_one_line(name: str) -> None:
    with pytest.raises(CocoError, match="not a file name"):
        read_coco_json(Path(name))


def test_no_annotations(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content([])))
    dataset, truth = load_coco_with_truth(path, tmp_path)
    assert dataset.boxes.shape == (0, 4)
    assert dataset.offsets.tolist() == [0, 0, 0, 0]
    assert truth.boxes.shape == (0, 4)


@pytest.mark.parametrize("twice", [5, "a", 1.5])
def test_equal_ids(twice: object, tmp_path: Path) -> None:
    """Each entry says by itself what it is, so all are read; the same entry again is read once; both are named."""
    path, usable = tmp_path / "a.json", {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}
    other = {**usable, "bbox": [5, 6, 7, 8]}
    for pair, boxes, problem in (
        ([usable, other], [[1, 2, 4, 6], [5, 6, 12, 14]], "id of more than one annotation, all of them are read"),
        ([usable, usable], [[1, 2, 4, 6]], "annotation that occurs more than once, read once"),
    ):
        path.write_text(json.dumps(content([{**entry, "id": twice} for entry in pair])))
        dataset, truth = load_coco_with_truth(path, tmp_path)
        assert dataset.boxes.tolist() == boxes
        assert len(truth.boxes) == len(boxes)
        assert dataset.problems == (f"1 × {problem}: {twice}",)
    for ids in ((1, 1.0, True, "1"), (None, None), (5, None, None)):
        path.write_text(json.dumps(content([{**usable, "id": one} for one in ids])))
        dataset, _ = load_coco_with_truth(path, tmp_path)
        assert len(dataset.boxes) == len(ids), "these differ, or say nothing"
        assert dataset.problems == ()


@pytest.mark.parametrize("name", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value", ["yes", "", 2, -1, 0.5, [1], {}, "10", 10**400])
def test_a_flag_that_is_none_is_refused(name: str, value: object, tmp_path: Path) -> None:
    path, usable = tmp_path / "a.json", {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}
    path.write_text(json.dumps(content([{**usable, "id": 7}, {**usable, "id": 8, name: value}])))
    with pytest.raises(CocoError, match=rf"a\.json: annotations: annotation 8 has {name} .*, expected 0 or 1 \(1 such"):
        read_coco_json(path)
    path.write_text(json.dumps({**content([usable]), "info": {**usable, name: value}}))
    assert len(read_coco_json(path)["annotations"].ids) == 1, "annotations elsewhere are none"


@pytest.mark.parametrize("stranger", [1, "x", None, [1]])
def test_a_list_of_something_else_is_refused(stranger: object, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**content([]), "annotations": [stranger]}))
    with pytest.raises(CocoError, match="expected a list of objects under 'annotations'"):
        read_coco_json(path)
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}
    path.write_text(json.dumps({**content([]), "images": [annotation]}))
    with pytest.raises(CocoError, match="'images'"):
        read_coco_json(path)
    path.write_text(json.dumps({**content([annotation]), "info": {"sample": {**annotation, "image_id": 7}}}))
    assert read_coco_json(path)["annotations"].image_ids.tolist() == [1], "annotations elsewhere are none"
