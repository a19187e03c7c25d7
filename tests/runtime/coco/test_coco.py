from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.coco import CocoDataset, CocoError, FileNames, load_coco
from runtime.images import ImageError

SMALL: dict[str, Any] = {
    "images": [
        {"id": 5, "file_name": "b.png", "height": 40, "width": 60},
        {"id": 2, "file_name": "sub/a.png", "height": 20, "width": 30},
        {"id": 9, "file_name": "empty.png", "height": 10, "width": 10},
    ],
    "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 2, "category_id": 17, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [5.5, 6.25, 100, 2], "area": 200},
    ],
}


def load(tmp_path: Path, content: object) -> CocoDataset:
    path = tmp_path / "set.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_coco(path, tmp_path / "images")


def changed(change) -> dict[str, Any]:
    content = copy.deepcopy(SMALL)
    change(content)
    return content


def with_annotation(**fields: object) -> dict[str, Any]:
    content = copy.deepcopy(SMALL)
    content["annotations"].append(
        {"id": 99, "image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0} | fields
    )
    return content


def test_images_without_any_annotation(tmp_path: Path) -> None:
    dataset = load(tmp_path, {**SMALL, "annotations": []})
    assert len(dataset) == 3
    boxes, labels, crowd = dataset.annotations(1)
    assert boxes.shape == (0, 4)
    assert labels.shape == crowd.shape == (0,)
    assert dataset.problems == ()


def test_index(tmp_path: Path) -> None:
    dataset = load(tmp_path, SMALL)
    assert dataset.image_ids.tolist() == [5, 2, 9]
    assert dataset.classes == ("dog", "cat")  # by rising category id
    assert dataset.category_ids == (3, 17)
    assert dataset.size_hw(1) == (20, 30)
    assert dataset.path(1) == tmp_path / "images" / "sub" / "a.png"
    boxes, labels, crowd = dataset.annotations(1)
    assert boxes.tolist() == [[1, 2, 4, 6], [5.5, 6.25, 30, 8.25]]  # xyxy, the second clipped
    assert labels.tolist() == [1, 0]
    assert crowd.tolist() == [False, False]
    assert dataset.annotations(0)[2].tolist() == [True]
    assert len(dataset.annotations(2)[0]) == 0
    assert (dataset.boxes.dtype, dataset.labels.dtype, dataset.crowd.dtype) == (np.float32, np.int64, np.bool_)
    assert dataset.problems == ()


def test_index_of_real_annotations_equals_a_plain_reading(shared_dir: Path) -> None:
    path = shared_dir / "data" / "coco100" / "instances_val2014_100.json"
    content = json.loads(path.read_text())
    dataset = load_coco(path, ".")
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert (len(dataset), len(dataset.boxes), int(dataset.crowd.sum())) == (100, 839, 9)
    assert dataset.problems == ()
    for index, image_id in enumerate(dataset.image_ids):
        expected = [a for a in content["annotations"] if a["image_id"] == image_id]
        boxes, labels, crowd = dataset.annotations(index)
        assert [dataset.classes[label] for label in labels] == [names[a["category_id"]] for a in expected]
        assert crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
        xyxy = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in expected)]
        np.testing.assert_allclose(boxes, np.reshape(xyxy, (-1, 4)), atol=0.02)  # some reach out by 0.01


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"bbox": [1, 1, 0, 5]}, "box of zero or negative size"),
        ({"bbox": [1, 1, 5, -2]}, "box of zero or negative size"),
        ({"bbox": [float("nan"), 1, 5, 5]}, "box that is not finite"),
        ({"bbox": [1, 1, float("inf"), 5]}, "box that is not finite"),
        ({"bbox": [1, 1, 10**400, 5]}, "box that is not finite"),
        ({"bbox": [30, 1, 5, 5]}, "box outside the image"),
        ({"bbox": [-10, 1, 10, 5]}, "box outside the image"),
        ({"bbox": [1, 1, 5]}, "bbox that is not four numbers"),
        ({"bbox": None}, "neither a bbox nor a mask that can be read"),
        ({"bbox": None, "segmentation": [[1, 2, 3]]}, "neither a bbox nor a mask that can be read"),
        ({"bbox": [1, "one", 5, 5]}, "bbox that is not four numbers"),
        ({"category_id": 4}, "unknown category"),
        ({"category_id": [3]}, "unknown category"),
        ({"image_id": 4}, "unknown image"),
        ({"image_id": None}, "unknown image"),
    ],
)
def test_an_unusable_annotation_is_dropped_and_named(tmp_path: Path, fields: dict, problem: str) -> None:
    dataset = load(tmp_path, with_annotation(**fields))
    (line,) = dataset.problems
    assert line.partition(" (")[0] == f"1 × {problem}: annotation 99"
    np.testing.assert_array_equal(dataset.boxes, load(tmp_path, SMALL).boxes)
    np.testing.assert_array_equal(dataset.offsets, load(tmp_path, SMALL).offsets)


def test_problems_are_counted_and_the_first_named(tmp_path: Path) -> None:
    content = copy.deepcopy(SMALL)
    content["annotations"] += [{"id": 100 + i, "image_id": 2, "category_id": 4, "bbox": [1, 1, 2, 2]} for i in range(9)]
    (line,) = load(tmp_path, content).problems
    named = ", ".join(f"annotation {100 + i}" for i in range(5))
    assert line == f"9 × unknown category: {named} … (category_id 4; the file's categories are 17 cat, 3 dog)"


def test_ids_that_are_unknown_are_named_beside_those_that_the_file_has(tmp_path: Path) -> None:
    def annotate(content: dict[str, Any]) -> None:
        odd = [2.5, "x", None, *range(20, 30)]
        content["annotations"] += [{"image_id": 2, "category_id": given, "bbox": [1, 1, 2, 2]} for given in odd]
        content["annotations"].append({"image_id": 2, "category_id": [3], "bbox": None})
        content["annotations"].append({"image_id": 77, "category_id": 3, "bbox": [1, 1, 2, 2]})

    categories, images = load(tmp_path, changed(annotate)).problems
    assert categories.endswith(
        "(category_id 20, 21, 22, 23, 24 … (14 in all); the file's categories are 17 cat, 3 dog)"
    )
    assert images.endswith("(image_id 77; the file's images have 5, 2, 9)")

    def rename(content: dict[str, Any]) -> None:  # ids that are no integers are numbered inside
        content["categories"] = [{"id": f"c{k}", "name": f"n{k}"} for k in range(12)]
        content["annotations"] = [{"image_id": 2, "category_id": 0, "bbox": [1, 1, 2, 2]}]

    (line,) = load(tmp_path, changed(rename)).problems
    known = ", ".join(f"c{k} n{k}" for k in range(10))
    assert line.endswith(f"(category_id 0; the file's categories are {known} … (12 in all))")


def test_categories_of_one_name_stay_apart(tmp_path: Path) -> None:
    content = changed(lambda c: c["categories"].append({"id": 1, "name": "cat"}))
    dataset = load(tmp_path, content)
    assert dataset.classes == ("cat (1)", "dog", "cat (17)")
    assert len(dataset.problems) == 1


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/etc/passwd", "..\\x.png", "C:\\x.png", "C:x.png", "\\\\host\\x", "..", "\\x"],
)
def test_a_file_name_that_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    content = changed(lambda c: c["images"][0].update(file_name=name))
    with pytest.raises(CocoError, match=r"image 5 has file_name .* which leads out of the image folder"):
        load(tmp_path, content)


def test_file_names_are_a_sequence_of_texts() -> None:
    texts = ("a.jpg", "", "ordner/größe ☃.png", "\udc80.jpg")
    names = FileNames(iter(texts))
    assert len(names) == 4
    assert list(names) == [names[i] for i in range(4)] == list(texts)
    assert names[-1] == texts[-1]
    assert names[1:3] == texts[1:3]
    assert names == texts
    assert names == FileNames(texts)
    assert names != texts[:3]
    for index in (4, -5):
        with pytest.raises(IndexError):
            names[index]
    assert list(FileNames([])) == []
    assert list(pickle.loads(pickle.dumps(names))) == list(texts), "loader processes may receive it so"


def test_harmless_file_names(tmp_path: Path) -> None:
    for name in ("a..b.png", "...png", "a/b/c.png", "größe.png", "a b.png"):
        assert load(tmp_path, changed(lambda c, n=name: c["images"][0].update(file_name=n))).file_names[0] == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the annotations are not valid JSON .* the file is empty"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "git lfs pull"),
        ("<!DOCTYPE html>", "web page"),
        (
            "path: .\ntrain: images/train\nnames: [a]\n",
            r"looks like a YOLO data.yaml, .* yolo:\S+set.json, .*convert yolo",
        ),
        ("\ufeffnames:\n  0: a\nnc: 1\n", "looks like a YOLO data.yaml"),
        ("names:\n- a\n", "not valid JSON"),
        ("0 0.5 0.5 0.1 0.2\n12 0.25 0.5 0.1 0.2\r\n", "looks like YOLO's labels of one image, .* yolo:data.yaml"),
        ("3 0.5 0.5 1e-1 0.2", "looks like YOLO's labels"),
        ("0.5 0.5 0.1 0.2\n", "not valid JSON"),
        ("<annotation>\n<folder>x</folder></annotation>", "looks like the Pascal VOC file of one image, .* voc:FOLDER"),
        ("<annotations></annotations>", "web page or XML"),
        ("file,x1,y1,x2,y2,label\na.jpg,1,2,3,4,a\n", "looks like a CSV table"),
        ('{"file_name": "a.jpg"}\n{"file_name": "b.jpg"}\n', "looks like JSON Lines"),
        ([{"image": "a.jpg", "annotations": []}], r"looks like CreateML, .* createml:\S+set.json"),
        ([{"image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 0.5}], "a list, as COCO results are"),
        ([{"image_id": 2, "category_id": 3, "segmentation": None, "score": 0.5}], "a list, as COCO results are"),
        (json.dumps(SMALL)[:100], "not valid JSON .* cut short"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([], "not COCO annotations"),
        ({"images": []}, "expected a list of objects under 'categories'"),
        ({**SMALL, "images": []}, "the data set is empty: no images"),
        ({**SMALL, "categories": []}, "the data set is empty: no categories"),
        ({**SMALL, "images": [1]}, "expected a list of objects under 'images'"),
        ({**SMALL, "annotations": None}, "expected a list of objects under 'annotations'"),
        (changed(lambda c: c["images"][1].update(id=5)), "images: id 5 occurs more than once"),
        (changed(lambda c: c["categories"][1].update(id=17)), "categories: id 17 occurs more than once"),
        (changed(lambda c: c["images"][1].update(id="5")), "images: ids 5 and '5' both occur"),
        (changed(lambda c: c["images"][1].pop("id")), "images: entry 2 has id None, expected a number or a text"),
        (changed(lambda c: c["images"][1].update(id=True)), "images: entry 2 has id True"),
        (changed(lambda c: c["images"][1].update(id=[2])), "images: entry 2 has id \\[2\\]"),
        (changed(lambda c: c["images"][0].pop("height")), "image 5 has height None .*cannot read the image"),
        (changed(lambda c: c["images"][0].update(width=0)), "image 5 has height 40 and width 0"),
        (changed(lambda c: c["images"][0].update(width=1.5)), "image 5 has width 1.5"),
        (changed(lambda c: c["images"][0].update(width=2**40)), "image 5 has width"),
        (changed(lambda c: c["images"][0].pop("file_name")), "image 5 has file_name None"),
        (changed(lambda c: c["images"][0].update(file_name="")), "image 5 has file_name ''"),
        (changed(lambda c: c["images"][0].update(file_name="a\0b")), "image 5 has file_name"),
        (changed(lambda c: c["categories"][0].pop("name")), "category 17 has no name"),
    ],
)
def test_a_file_that_is_doubtful_as_a_whole(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CocoError, match=message) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "set.json"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="cannot read the annotations: No such file or directory; check the path"):
        load_coco(tmp_path / "no.json", tmp_path)
    with pytest.raises(CocoError, match="cannot read the annotations"):
        load_coco(tmp_path, tmp_path)


def test_images_are_read_and_their_size_is_checked(tmp_path: Path) -> None:
    dataset = load(tmp_path, SMALL)
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "b.png"), np.full((40, 60, 3), (1, 2, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "images" / "empty.png"), np.zeros((10, 11, 3), np.uint8))
    assert dataset.image(0)[0, 0].tolist() == [3, 2, 1]
    with pytest.raises(ImageError, match="cannot read the image"):
        dataset.image(1)
    with pytest.raises(ImageError, match=r"the image is 11×10 .* the annotations say 10×10"):
        dataset.image(2)
    with pytest.raises(ImageError, match="megapixels"):
        dataset.image(0, max_pixels=5)
