"""COCO → another layout by an independent writer → back: the same images, classes and boxes, the same AP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.coco import load_ground_truth, parse_results, score
from tests.support.layout_writers import WRITERS, objects_of
from train import shapes
from train.convert import convert
from train.layouts import parse_source, read_source

Content = dict[str, Any]
# Of a side: YOLO's six decimals; the others keep what is written.
ROUNDING = {"yolo": 1.5e-6, "voc": 0.0, "createml": 0.0}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, JPEG and PNG, two of them without objects."""
    out = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(out, shapes.Settings(train=40, val=1, seed=3, size=128), progress=False)
    content = load(out / "train.json")
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in (1, 40)]
    (out / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return out


def load(path: Path) -> Content:
    return json.loads(path.read_text(encoding="utf-8"))


def same(content: Content, back: Content, rounding: float) -> None:
    """Both contents have the same images with the same objects, up to the layout's rounding."""
    by_name = {Path(image["file_name"]).name: image for image in back["images"]}
    assert sorted(by_name) == sorted(image["file_name"] for image in content["images"])
    assert {c["name"] for c in back["categories"]} == {c["name"] for c in content["categories"]}
    for image in content["images"]:
        other = by_name[image["file_name"]]
        assert (other["width"], other["height"]) == (image["width"], image["height"])
        before, after = (sorted(objects_of(*of), key=lambda o: o[0]) for of in ((content, image), (back, other)))
        assert [o[0] for o in after] == [o[0] for o in before]
        limit = rounding * max(image["width"], image["height"]) + 1e-4
        np.testing.assert_allclose([o[1:] for o in after], [o[1:] for o in before], rtol=0, atol=limit)


def results_of(content: Content, seed: int = 0) -> list[dict[str, Any]]:
    """Detections by file name: the objects, shaken, some missing, some of another class, and some out of thin air."""
    rng = np.random.default_rng(seed)
    names = [category["name"] for category in content["categories"]]
    found = []
    for image in content["images"]:
        for name, x, y, w, h in [*objects_of(content, image), (names[0], 3.3, 4.4, 30.1, 20.7)]:
            if rng.random() < 0.85:
                shaken = np.array([x, y, w, h]) + rng.normal(0, 0.08, 4) * [w, h, w, h]
                shaken[2:] = np.maximum(shaken[2:], 1.0)
                other = names[int(rng.integers(len(names)))] if rng.random() < 0.1 else name
                found.append({"name": image["file_name"], "class": other, "bbox": shaken.tolist()})
                found[-1]["score"] = float(rng.random())
    return found


def scores(content: Content, results: list[dict[str, Any]], path: Path) -> dict[str, float]:
    """COCO's metrics of results by file name."""
    path.write_text(json.dumps(content), encoding="utf-8")
    images = {Path(image["file_name"]).name: image["id"] for image in content["images"]}
    classes = {category["name"]: category["id"] for category in content["categories"]}
    rows = [
        {"image_id": images[r["name"]], "category_id": classes[r["class"]], "bbox": r["bbox"], "score": r["score"]}
        for r in results
    ]
    return score(load_ground_truth(path), parse_results(rows, "the test")).values


@pytest.mark.parametrize("layout", WRITERS)
def test_drawn_images_come_back(layout: str, drawn: Path, tmp_path: Path) -> None:
    content = load(drawn / "train.json")
    back, root, problems = convert(WRITERS[layout](content, drawn / "train", tmp_path / layout))
    assert problems == []
    same(content, back, ROUNDING[layout])
    assert all((root / image["file_name"]).is_file() for image in back["images"])


@pytest.mark.parametrize("layout", WRITERS)
def test_photographs_score_the_same(layout: str, shared_dir: Path, tmp_path: Path) -> None:
    """All of COCO's twelve metrics, sizes too, since these boxes' areas are their objects'."""
    data = shared_dir / "data" / "bccd"
    if not data.is_dir():
        pytest.skip(f"no photographs in {data}")
    content = load(data / "test.json")
    back, _, problems = convert(WRITERS[layout](content, data / "images", tmp_path / layout))
    assert problems == []
    same(content, back, ROUNDING[layout])
    results = results_of(content)
    before, after = (scores(c, results, tmp_path / "scored.json") for c in (content, back))
    assert 0.2 < before["AP"] < 0.9
    assert after == pytest.approx(before, abs=1e-12)
    # The comparison has teeth: a box read without VOC's pixel is another box.
    for entry in back["annotations"]:
        entry["bbox"][0] += 1
    assert scores(back, results, tmp_path / "scored.json") != pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("layout", WRITERS)
def test_what_supervision_writes_is_read(layout: str, drawn: Path, tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision", reason="the writer")
    content = load(drawn / "train.json")
    theirs = sv.DetectionDataset.from_coco(str(drawn / "train"), str(drawn / "train.json"))
    images = tmp_path / ("images" if layout == "yolo" else "set")
    if layout == "yolo":
        theirs.as_yolo(str(images), str(tmp_path / "labels"), str(tmp_path / "data.yaml"))
        source = f"yolo:{_with_split(tmp_path / 'data.yaml')}"
    elif layout == "voc":
        theirs.as_pascal_voc(str(images), str(images))
        source = f"voc:{images}"
    else:
        theirs.as_createml(str(images), str(images / "all.json"))
        source = f"createml:{images / 'all.json'}"
    back, _, problems = convert(source)
    assert problems == []
    with_objects = {entry["category_id"] for entry in content["annotations"]}
    content["categories"] = [c for c in content["categories"] if layout == "yolo" or c["id"] in with_objects]
    same(content, back, 1.5e-5)  # five decimals; boxes are whole pixels


def _with_split(path: Path) -> Path:
    """supervision writes the names alone."""
    path.write_text(path.read_text() + "train: images\n")
    return path


def test_coco_comes_back_with_its_ids(drawn: Path, tmp_path: Path) -> None:
    content = load(drawn / "train.json")
    for entry in (*content["images"], *content["categories"]):
        entry["id"] += 100
    for entry in content["annotations"]:
        entry |= {"image_id": entry["image_id"] + 100, "category_id": entry["category_id"] + 100}
    content["annotations"][0] |= {"area": 12.5, "iscrowd": 1, "segmentation": [[0, 0, 1, 1, 2, 0]]}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    (tmp_path / "train").symlink_to(drawn / "train")
    back, root, problems = convert(f"coco:{path}")
    assert (root, problems) == (tmp_path / "train", [])
    same(content, back, 0.0)
    assert {image["id"] for image in back["images"]} == {image["id"] for image in content["images"]}
    crowd = next(entry for entry in back["annotations"] if entry["iscrowd"])
    assert (crowd["area"], crowd["bbox"]) == (12.5, content["annotations"][0]["bbox"])


def test_nothing_that_supervisions_readers_lose_is_lost(drawn: Path, tmp_path: Path) -> None:
    """Why the readers are the toolkit's own: each of these is lost by supervision 0.31, or stops it."""
    sv = pytest.importorskip("supervision", reason="the reader that is compared")
    content = load(drawn / "train.json")
    moved = tmp_path / "moved"
    for number, image in enumerate(content["images"]):
        (moved / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        before, image["file_name"] = image["file_name"], f"{number % 2}/{image['file_name']}"
        (moved / image["file_name"]).write_bytes((drawn / "train" / before).read_bytes())
    content["categories"][0]["name"] = "no"
    source = WRITERS["yolo"](content, moved, tmp_path)
    ours = read_source(parse_source(source), "train")
    yaml = tmp_path / "data.yaml"
    yaml.write_text(yaml.read_text().replace('"no"', "no"))
    theirs: Callable[[], Any] = lambda: sv.DetectionDataset.from_yolo(  # noqa: E731
        str(tmp_path / "images/train"), str(tmp_path / "labels/train"), str(yaml)
    )
    assert len(ours.images) == len(content["images"])
    assert len(theirs()) == 0, "sub-folders aren't searched"
    assert "False" in theirs().classes, "the class `no` is taken for false"
    assert "no" in read_source(parse_source(source), "train").categories.values()
