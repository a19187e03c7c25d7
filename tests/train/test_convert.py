"""`python -m train.convert`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.coco import load_coco
from runtime.errors import UserError
from runtime.outputs import OutputError
from tests.support.layout_writers import WRITERS
from train.convert import convert, main

from .conftest import Make


@pytest.fixture
def source(shapes_set: Path, tmp_path: Path) -> str:
    content = json.loads((shapes_set / "train.json").read_bytes())
    name = WRITERS["yolo"](content, shapes_set / "train", tmp_path / "set")
    (tmp_path / "set" / "labels" / "train" / "000001.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    return name


def test_the_file_trains_and_the_dropped_is_said(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "train.json"
    assert main([source, "-o", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("warning: 1 × line of a class that has no name, dropped: labels/train/000001.txt:1")
    assert said[1].startswith(f"{out}: 24 images (")
    assert said[2] == f"train with: --data.train-json {out} --data.train-images {tmp_path}/set/images/train"
    dataset = load_coco(out, tmp_path / "set" / "images" / "train")
    assert (len(dataset), dataset.problems) == (24, ())


def test_a_second_time(source: str, tmp_path: Path) -> None:
    """What the first run wrote into the data set's folder is no input of the second."""
    out = tmp_path / "set" / "train.json"
    for given in (source, f"yolo:{tmp_path / 'set'}"):
        assert main([given, "-o", str(out)]) == 0


def test_another_root(source: str, tmp_path: Path) -> None:
    content, root, _ = convert(source, images=tmp_path)
    assert root == tmp_path
    assert content["images"][0]["file_name"] == "set/images/train/000000.jpg"
    with pytest.raises(UserError, match=r"--images-root .*: the images lie in .*/images/train"):
        convert(source, images=tmp_path / "set" / "labels")


def test_outputs_eat_no_inputs(shapes_set: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_set / "train.json").read_bytes())
    source = WRITERS["createml"](content, shapes_set / "train", tmp_path)
    file = source.partition(":")[2]
    before = Path(file).read_bytes()
    for given in (source, f"createml:{Path(file).parent}", f"createml:{tmp_path}"):
        with pytest.raises(OutputError, match="this run reads that file"):
            main([given, "-o", file])
    with pytest.raises(UserError, match="expected a name that ends in "):
        main([source, "-o", str(tmp_path / "train" / "000000.jpg")])
    assert Path(file).read_bytes() == before


def test_a_split_that_is_not_there(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val names 'images/val', which is not there"):
        main([source, "-o", str(tmp_path / "o.json"), "--split", "val"])
    assert not (tmp_path / "o.json").exists()


def test_a_coco_file_comes_back_clean(picture: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LVIS's names in URLs, sizes that only images say, ids that are texts, regions to ignore, areas of outlines."""
    picture("val2017/a.png")
    picture("val2017/b.png")
    box = {"category_id": "cat", "bbox": [1.5, 2, 20, 10]}
    content = {
        "images": [
            {"id": "one", "coco_url": "http://images.cocodataset.org/val2017/a.png"},
            {"id": "two", "file_name": "val2017\\b.png", "width": "80", "height": 60.0},
        ],
        "annotations": [
            {"image_id": "one", "area": 120.5, "segmentation": [[1.5, 2, 21.5, 2, 21.5, 12]], **box},
            {"image_id": "one", "ignore": 1, **box},
            {"image_id": "two", "iscrowd": "1", **box},
            {"image_id": "three", **box},
            {"image_id": "two", "category_id": "cat", "segmentation": [[10, 10, 30, 10, 30, 40]]},
        ],
        "categories": [{"id": "cat", "name": "cat"}],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    assert main([f"coco:{tmp_path / 'lvis.json'}", "-o", str(tmp_path / "out" / "clean.json")]) == 0
    clean = json.loads((tmp_path / "out" / "clean.json").read_text())
    assert clean["images"] == [
        {"id": "one", "file_name": "val2017/a.png", "height": 60, "width": 80},
        {"id": "two", "file_name": "val2017/b.png", "height": 60, "width": 80},
    ]
    kept = [{key: value for key, value in entry.items() if key != "id"} for entry in clean["annotations"]]
    assert kept == [
        {"image_id": "one", "iscrowd": 0, "area": 120.5, **box},
        {"image_id": "one", "iscrowd": 0, "area": 200.0, "ignore": 1, **box},
        {"image_id": "two", "iscrowd": 1, "area": 200.0, **box},
        {"image_id": "two", "iscrowd": 0, "area": 600.0, "category_id": "cat", "bbox": [10, 10, 20, 30]},
    ]
    assert "warning: 1 × unknown image" in capsys.readouterr().out


def test_vocs_difficult_objects_are_regions_for_training_and_scoring(picture: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = f"<object><name>x</name>{box}</object><object><name>x</name><difficult>1</difficult>{box}</object>"
    (tmp_path / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    assert main([f"voc:{tmp_path}", "-o", str(tmp_path / "out.json")]) == 0
    dataset = load_coco(tmp_path / "out.json", tmp_path)
    assert dataset.ignore.tolist() == dataset.crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ("7 0.5 0.5 0.1 0.1\n", "[a]", r"no object is left \(1 × line of a class that has no name, dropped"),
        ("0 80 60 40 60\n", "[a]", r"no object is left \(1 × line with a number outside 0–1"),
    ],
)
def test_a_set_whose_objects_are_all_dropped_is_an_error(
    labels: str, names: str, message: str, picture: Make, text: Make, tmp_path: Path
) -> None:
    picture("a.jpg")
    text("a.txt", labels)
    yaml, out = text("data.yaml", f"train: .\nnames: {names}\n"), tmp_path / "o.json"
    with pytest.raises(UserError, match=message):
        main([f"yolo:{yaml}", "-o", str(out)])
    assert not out.exists()
    text("a.txt", "")
    text("broken.jpg", b"x")
    assert main([f"yolo:{yaml}", "-o", str(out)]) == 0, "images without objects are negatives"


def test_a_set_without_a_class_is_an_error(picture: Make, text: Make, tmp_path: Path) -> None:
    """A COCO file without categories, which no command reads."""
    picture("a.jpg")
    text("a.xml", "<annotation></annotation>")
    with pytest.raises(UserError, match="no object of a class"):
        main([f"voc:{tmp_path}", "-o", str(tmp_path / "o.json")])


def test_a_coco_file_whose_annotations_are_all_unusable_is_an_error(shapes_set: Path, tmp_path: Path) -> None:
    content = json.loads((shapes_set / "val.json").read_bytes())
    for annotation in content["annotations"]:
        annotation["category_id"] = 99
    (tmp_path / "c.json").write_text(json.dumps(content))
    command = [f"coco:{tmp_path / 'c.json'}", "-o", str(tmp_path / "o.json"), "--images-root", str(shapes_set / "val")]
    with pytest.raises(UserError, match=r"no object is left .*unknown category"):
        main(command)
