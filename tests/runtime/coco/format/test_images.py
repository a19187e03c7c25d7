"""Names of image files: of URLs, of Windows, with `..`, absolute; what leads out of the folder is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime import show
from runtime.coco import CocoDataset, CocoError, command, load_coco


def load(root: Path, allow_outside: bool = False, **image: object) -> CocoDataset:
    content = {
        "images": [{"id": 1, "height": 10, "width": 10, **image}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
    }
    path = root.parent / "set.json"
    path.write_text(json.dumps(content))
    return load_coco(path, root, allow_outside=allow_outside)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "sub" / "a.jpg").touch()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "outside.jpg").touch()
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub/a.jpg", "sub/a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        (".\\sub\\a.jpg", "./sub/a.jpg"),
        ("sub\\missing.jpg", "sub/missing.jpg"),
        ("sub/../a.jpg", "a.jpg"),
        ("../images/a.jpg", "a.jpg"),
        ("..\\images\\sub\\a.jpg", "sub/a.jpg"),
        ("sub/../../images/sub/a.jpg", "sub/a.jpg"),
        ("{root}/sub/a.jpg", "sub/a.jpg"),
        ("{root}/../images/a.jpg", "a.jpg"),
        ("a..jpg", "a..jpg"),
    ],
)
def test_names_that_stay_inside_are_read(root: Path, name: str, expected: str) -> None:
    dataset = load(root, file_name=name.format(root=root))
    assert dataset.file_names[0] == expected
    assert dataset.problems == ()


def test_a_backslash_that_is_part_of_a_name_stays(root: Path) -> None:
    (root / "odd\\name.jpg").touch()
    assert load(root, file_name="odd\\name.jpg").path(0).exists()


def test_an_absolute_name_is_inside_a_linked_folder(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    assert load(root.parent / "link", file_name=f"{root}/a.jpg").file_names[0] == "a.jpg"
    assert load(root.parent / "link", file_name=f"{root.parent}/link/a.jpg").file_names[0] == "a.jpg"


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "sub/../../outside.jpg", "{root}/../outside.jpg", "..\\outside.jpg"]
)
def test_names_that_lead_out_need_a_word(root: Path, name: str) -> None:
    name = name.format(root=root)
    with pytest.raises(CocoError, match=r"image 1 has file_name .*, which leads out of the image .* --allow-outside"):
        load(root, file_name=name)
    assert load(root, allow_outside=True, file_name=name).path(0).exists()


@pytest.mark.parametrize("name", ["../images2/a.jpg", "/etc/passwd", "..", "../images"])
def test_a_folder_of_a_longer_name_and_the_folder_itself_are_outside(root: Path, name: str) -> None:
    with pytest.raises(CocoError, match="leads out of the image folder"):
        load(root, file_name=name)


@pytest.mark.parametrize("name", ["C:\\a.jpg", "C:a.jpg", "\\\\host\\share\\a.jpg"])
def test_a_windows_path_is_refused_in_any_case(root: Path, name: str) -> None:
    for allow in (False, True):
        with pytest.raises(CocoError, match="leads out of the image folder: a path of Windows; write it relative"):
            load(root, allow_outside=allow, file_name=name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://images.cocodataset.org/sub/a.jpg", "sub/a.jpg"),
        ("http://images.cocodataset.org/train2017/a.jpg", "a.jpg"),  # the file lies in the folder itself
        ("http://images.cocodataset.org/train2017/missing.jpg", "train2017/missing.jpg"),
        ("http://images.cocodataset.org/images/missing.jpg", "missing.jpg"),  # the folder has that name
        ("http://host/sub/a%2Ejpg?size=1#x", "sub/a.jpg"),
        ("http://host/a.jpg", "a.jpg"),
        ("http://host/../../../sub/a.jpg", "sub/a.jpg"),
    ],
)
def test_lvis_names_are_those_of_the_url(root: Path, url: str, expected: str) -> None:
    assert load(root, coco_url=url).file_names[0] == expected
    assert load(root, coco_url=url, file_name="given.jpg").file_names[0] == "given.jpg"


@pytest.mark.parametrize("image", [{}, {"file_name": 5}, {"file_name": ""}, {"coco_url": 7}, {"coco_url": "http://h"}])
def test_no_name_at_all(root: Path, image: dict[str, object]) -> None:
    with pytest.raises(CocoError, match=r"image 1 has file_name .*, expected a path inside the image folder"):
        load(root, **image)


def test_the_commands_have_the_option(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(root.parent / "outside.jpg"), np.zeros((10, 10, 3), np.uint8))
    load(root, allow_outside=True, file_name="../outside.jpg")
    (root.parent / "results.json").write_text("[]")
    annotations = [str(root.parent / "results.json"), "--annotations", str(root.parent / "set.json")]
    drawing = [*annotations, "--images", str(root), "--out", str(root.parent / "shown")]
    with pytest.raises(CocoError, match="leads out of the image folder"):
        show.main(drawing)
    assert show.main([*drawing, "--allow-outside"]) == 0
    scoring = ["--results", *annotations, "--images", str(root)]
    with pytest.raises(CocoError, match="leads out of the image folder"):
        command.main(scoring)
    assert command.main([*scoring, "--allow-outside"]) == 0
    assert command.main(scoring[:-2]) == 0, "without a folder of images no name is looked at"
    capsys.readouterr()


def test_a_file_that_two_images_name_is_said(tmp_path: Path) -> None:
    """Merged files: an image is trained on twice then, once without the objects of the other entry."""
    sizes = {"height": 4, "width": 6}
    content = {
        "images": [{"id": number, "file_name": name, **sizes} for number, name in enumerate("aba", start=1)],
        "annotations": [],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    said = load_coco(tmp_path / "set.json", tmp_path).problems
    assert said == ("1 × file of more than one image, each with its own annotations: a",)
