"""`python -m train.inspect`: every figure beside one that is known or counted another way, every fault planted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from runtime.coco import load_coco
from runtime.errors import UserError
from runtime.images import decode
from runtime.images.preprocess import boxes_to_canvas, plan
from runtime.outputs import OutputError
from tests.support.layout_writers import WRITERS
from train.config.recipes import RECIPES
from train.geometry.anchors import grid_anchors, pyramid_levels
from train.inspect.__main__ import main
from train.inspect.files import identical_files
from train.inspect.opened import open_data
from train.inspect.positives import positives_of, positives_report
from train.inspect.sheet import chosen_images
from train.layouts import parse_source

RED, GREEN = {"id": 1, "name": "red"}, {"id": 2, "name": "green"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images of 120 × 90 px, two boxes in each but the last, which has none."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [RED, GREEN]}
    (tmp_path / "train").mkdir()
    for number in range(1, 9):
        image = rng.integers(0, 255, (90, 120, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "train" / f"{number}.png"), image)
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 90, "width": 120})
        for category, box in ((1, [10, 10, 40, 40]), (2, [60, 20, 30, 60])) if number < 8 else ():
            annotation = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": category}
            content["annotations"].append(annotation | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def change(data: Path, edit: Any) -> None:
    content = json.loads((data / "train.json").read_text())
    edit(content)
    (data / "train.json").write_text(json.dumps(content))


def report_on(data: Path, *more: str, code: int = 0) -> dict[str, Any]:
    assert main([str(data / "train.json"), "--json", str(data / "report.json"), *more]) == code
    return json.loads((data / "report.json").read_text())


def test_a_sound_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_on(data)
    assert report["faults"] == []
    assert (report["images"], report["boxes"]["objects"], report["boxes"]["empty_images"]) == (8, 14, 1)
    assert report["boxes"]["classes"] == [
        {"name": "red", "objects": 7, "images": 7},
        {"name": "green", "objects": 7, "images": 7},
    ]
    assert report["image_sizes"] == [["120×90", 8]]
    assert report["boxes"]["per_image"]["50 %"] == 2
    assert report["boxes"]["aspects"] == {"0 %": 0.5, "10 %": 0.5, "50 %": 0.75, "90 %": 1.0, "100 %": 1.0}
    assert (report["files"]["decoded"], report["files"]["images"], report["identical"]) == (8, 8, [])
    for name in ("tiny", "outside", "same_twice", "two_classes", "elongated", "crowds"):
        assert report["boxes"][name] == 0
    said = capsys.readouterr().out
    assert "8 images, 14 objects, 2 classes" in said
    assert said.rstrip().endswith("no faults")


def test_boxes_that_look_like_mistakes(data: Path) -> None:
    def plant(content: dict[str, Any]) -> None:
        def add(image: int, category: int, box: list[float], **more: int) -> None:
            content["annotations"].append(
                {"id": 1000 + len(content["annotations"]), "image_id": image, "category_id": category, "bbox": box}
                | more
            )

        add(1, 1, [10, 10, 40, 40])  # again
        add(2, 2, [10, 10, 40, 40])  # again, as another class
        add(3, 1, [100, 10, 40, 40])  # beyond
        add(4, 1, [5, 5, 1, 30])  # tiny, and elongated
        add(5, 1, [0, 0, 120, 90], iscrowd=1)
        add(6, 1, [500, 10, 40, 40])  # outside: dropped
        content["categories"].append({"id": 3, "name": "never"})

    change(data, plant)
    boxes = (report := report_on(data))["boxes"]
    assert (boxes["same_twice"], boxes["two_classes"], boxes["outside"], boxes["tiny"]) == (1, 1, 2, 1)
    assert (boxes["elongated"], boxes["crowds"], boxes["objects"]) == (1, 1, 18)
    assert boxes["examples"] == {
        "tiny": ["4.png"],
        "outside": ["3.png", "6.png"],
        "same_twice": ["1.png"],
        "two_classes": ["2.png"],
    }
    assert boxes["classes"][-1] == {"name": "never", "objects": 0, "images": 0}
    assert any("box outside the image" in problem for problem in report["problems"])


def test_files_that_cannot_be_used(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = data / "train"
    (images / "1.png").unlink()
    (images / "5.png").write_bytes((images / "5.png").read_bytes()[:-200])  # a good header
    (images / "3.png").write_bytes(b"no image")
    cv2.imwrite(str(images / "4.png"), np.zeros((45, 60, 3), np.uint8))
    report = report_on(data, code=1)
    assert report["faults"] == ["3 images that can't be read", "1 images of another size than annotated"]
    unreadable = " ".join(report["files"]["unreadable"])
    assert all(f"{number}.png" in unreadable for number in (1, 3, 5))
    assert "4.png: the image is 60×45, the annotations say 120×90" in report["files"]["other_size"][0]
    assert "fault: 3 images that can't be read" in capsys.readouterr().out
    # Only decoding shows that a file is cut short.
    sampled = report_on(data, "--decode", "2", code=1)
    assert (sampled["files"]["decoded"], len(sampled["files"]["unreadable"])) == (2, 2)


def test_the_same_images_in_the_set_and_in_validation(data: Path) -> None:
    shutil.copy(data / "train" / "1.png", data / "train" / "5.png")
    (data / "val").mkdir()
    shutil.copy(data / "train" / "2.png", data / "val" / "other name.png")
    shutil.copy(data / "train" / "5.png", data / "val" / "1.png")
    cv2.imwrite(str(data / "val" / "new.png"), np.full((90, 120, 3), 7, np.uint8))
    names = ["other name.png", "1.png", "new.png"]
    images = [{"id": n, "file_name": name, "height": 90, "width": 120} for n, name in enumerate(names)]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}
    (data / "val.json").write_text(json.dumps({"images": images, "annotations": [box], "categories": [RED, GREEN]}))
    report = report_on(data, "--val", str(data / "val.json"), code=1)
    assert report["identical"] == [["1.png", "5.png"]]
    assert report["leaks"] == [
        ["1.png", "5.png", str(data / "val" / "1.png")],
        ["2.png", str(data / "val" / "other name.png")],
    ]
    assert report["faults"] == [f"2 images that are also in {data / 'val.json'}"]
    assert report_on(data)["faults"] == []


def test_identical_files_are_those_with_the_same_bytes(tmp_path: Path) -> None:
    assert identical_files([]) == []
    long = bytes(range(256)) * 400  # longer than the beginning that is compared first
    contents = [b"", b"", b"a", b"b", long, long[:-1] + b"x", long, b"a", long[:-1]]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    expected: dict[bytes, list[int]] = {}
    for number, content in enumerate(contents):
        expected.setdefault(content, []).append(number)
    slow = sorted(group for group in expected.values() if len(group) > 1)
    assert identical_files([*paths, tmp_path / "missing", tmp_path]) == slow == [[0, 1], [2, 7], [4, 6]]


def slow_positives(boxes: np.ndarray, canvas_hw: tuple[int, int], recipe: str) -> list[int]:
    """ATSS by its published steps, box by box, on all anchors; ties as the assigner's: the lower index."""
    config = RECIPES[recipe]()
    levels = pyramid_levels(canvas_hw, config.model.pyramid.levels, config.model.anchors)
    anchors = grid_anchors(levels).numpy().astype(np.float64)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    overlaps = np.stack([_iou(anchors, box) for box in boxes])
    claims = np.full((len(boxes), len(anchors)), -1.0)
    for g, box in enumerate(boxes.astype(np.float64)):
        distance = ((middles - (box[:2] + box[2:]) / 2) ** 2).sum(axis=1)
        candidates, first = [], 0
        for level in levels:
            inside = np.argsort(distance[first : first + level.anchors], kind="stable")[: config.model.assignment.k]
            candidates += (first + inside).tolist()
            first += level.anchors
        found = overlaps[g, candidates]
        threshold = found.mean() + found.std(ddof=1)
        for anchor, overlap in zip(candidates, found, strict=True):
            x, y = middles[anchor]
            if overlap >= threshold and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01:
                claims[g, anchor] = overlap
    winner = np.where(claims.max(axis=0) >= 0, claims.argmax(axis=0), -1)
    return [int((winner == g).sum()) for g in range(len(boxes))]


def _iou(anchors: np.ndarray, box: np.ndarray) -> np.ndarray:
    sides = np.minimum(anchors[:, 2:], box[2:]) - np.maximum(anchors[:, :2], box[:2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)


def test_positives_are_the_assigners(shapes_set: Path) -> None:
    dataset, config = load_coco(shapes_set / "train.json", shapes_set / "train"), RECIPES["atss_tiny"]()
    report = positives_report(dataset, config, 0)
    slow: list[int] = []
    for index in range(len(dataset)):
        boxes, _, _ = dataset.annotations(index)
        if len(boxes):
            geometry = plan(dataset.size_hw(index), config.preprocess)
            slow += slow_positives(boxes_to_canvas(boxes, geometry), geometry.canvas_hw, "atss_tiny")
    with_objects = int((np.diff(dataset.offsets) > 0).sum())
    assert (report.objects, report.images, report.of_images) == (len(dataset.boxes), with_objects, with_objects)
    assert positives_report(dataset, config, 5).images == 5
    assert report.without == slow.count(0)
    assert sum(row.objects * row.positives for row in report.rows) == pytest.approx(sum(slow), rel=0.01)


def test_objects_without_a_positive_are_found(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A box between the centres of all cells trains nothing; enlarged, it does."""
    change(data, lambda content: content["annotations"][0].update(bbox=[42.5, 42.5, 4, 4]))
    report = report_on(data, "--recipe", "atss_tiny", "--short-side", "96", "--long-side", "128")
    found = report["positives"]
    assert (found["sides"], found["images"], found["objects"]) == ([96, 128], 7, 14)
    tiny = [row for row in found["rows"] if row["least"] == 0]
    assert len(tiny) == 1
    assert tiny[0]["objects"] == 1
    boxes = np.array([[42.5, 42.5, 46.5, 46.5]], np.float32) * np.float32(96 / 90)
    expected = slow_positives(boxes, (96, 128), "atss_tiny")[0]
    assert (tiny[0]["without"], expected) == (1, 0)
    assert "without a positive in all: 1 of 14" in capsys.readouterr().out
    larger = report_on(data, "--recipe", "atss_tiny", "--short-side", "960", "--long-side", "1280")
    assert larger["positives"]["without"] == 0


def test_a_batch_of_images_is_its_singles() -> None:
    config = RECIPES["atss_lite0"]()
    rng = np.random.default_rng(1)
    images = []
    for count in (3, 1, 7, 0):
        corners = rng.uniform(0, 200, (count, 2))
        images.append(np.hstack([corners, corners + rng.uniform(3, 90, (count, 2))]).clip(0, 255).astype(np.float32))
    together = positives_of(images, (256, 256), config)
    for boxes, found in zip(images, together, strict=True):
        np.testing.assert_array_equal(found, positives_of([boxes], (256, 256), config)[0])
    assert [len(found) for found in together] == [3, 1, 7, 0]


@pytest.mark.parametrize("recipe", ["fcos_r50_fpn_1x", "retinanet_r50_fpn_1x", "topk_r50_fpn_1x"])
def test_other_assigners(recipe: str) -> None:
    config = RECIPES[recipe]()
    found = positives_of([np.array([[10, 10, 200, 150]], np.float32)], (256, 256), config)
    assert found[0][0] > 0


def test_the_page_shows_every_class(data: Path) -> None:
    report_on(data, "-o", str(data / "page.jpg"))
    page = decode(data / "page.jpg")
    assert page.shape[1] == 6 * (120 + 200 + 4) + 4  # six columns of 320 px
    assert page.shape[0] == 2 * (90 + 4) + 4
    dataset = load_coco(data / "train.json", data / "train")
    assert chosen_images(dataset, 100) == list(range(8))
    rare = replace(dataset, labels=np.array([0] * 13 + [1]))
    assert 6 in chosen_images(rare, 1), "the only image of a class"


@pytest.mark.parametrize("layout", WRITERS)
def test_other_layouts_and_their_own_validation_split(layout: str, data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "train.json").read_text())
    out = tmp_path / layout
    train = WRITERS[layout](content, data / "train", out)
    half = {**content, "images": content["images"][:3]}
    WRITERS[layout](half, data / "train", out, "val")
    source = f"createml:{out}" if layout == "createml" else train
    report = tmp_path / "report.json"
    assert main([source, "--json", str(report)]) == 1
    found = json.loads(report.read_text())
    assert (found["images"], found["boxes"]["objects"]) == (8, 14)
    assert found["faults"][0].startswith("3 images that are also in ")


def test_what_cannot_be_inspected(data: Path, tmp_path: Path) -> None:
    file = str(data / "train.json")
    with pytest.raises(UserError, match="expected a name that ends in "):
        main([file, "-o", file])
    with pytest.raises(OutputError, match="this run reads that file"):
        main([file, "--json", file])
    with pytest.raises(UserError, match="no recipe 'atss_tinny', did you mean atss_tiny"):
        main([file, "--recipe", "atss_tinny"])
    with pytest.raises(UserError, match="--decode is -1"):
        main([file, "--decode", "-1"])
    with pytest.raises(UserError, match="--val-images is the folder of --val"):
        main([file, "--val-images", str(data)])
    with pytest.raises(UserError, match="leave --images out"):
        open_data(parse_source(f"voc:{data}"), "train", data)
    change(data, lambda content: content.update(annotations=[]))
    assert main([file]) == 1
    assert torch.is_grad_enabled()
