"""YOLO: Ultralytics' rules of folders and labels; what is no label is dropped and said."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from runtime.coco import load_coco
from runtime.errors import UserError
from tests.train.conftest import Make
from train.layouts import LabeledSet, LayoutError, as_coco, parse_source, read_source
from train.layouts.yolo import LineError, parse_line

BOX = "0 0.5 0.5 0.25 0.5\n"  # of 80 × 60 px: 30, 15, 50, 45


def read(path: Path, split: str = "train") -> LabeledSet:
    return read_source(parse_source(f"yolo:{path}"), split)


def boxes(found: LabeledSet) -> dict[str, list[tuple[int, ...]]]:
    """Category id and rounded corners of each image's objects."""
    return {
        image.path.name: [(o.category_id, *(round(value) for value in o.box)) for o in image.objects]
        for image in found.images
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.2 0.4", (0, (0.4, 0.3, 0.6, 0.7))),
        ("  1.0\t5e-1 .5 0.2 0.4  ", (1, (0.4, 0.3, 0.6, 0.7))),
        ("1 0.1 0.2 0.5 0.2 0.3 0.9", (1, (0.1, 0.2, 0.5, 0.9))),  # a triangle
        ("0 0.1 0.5 0.5 0.1 0.9 0.5 0.5 0.9", (0, (0.1, 0.1, 0.9, 0.9))),  # an oriented box
        ("0 0.5 0.5 0.2 0.4 0.93", (0, (0.4, 0.3, 0.6, 0.7))),  # with a confidence
        ("0 0.5 0.5 1.009 0.4", (0, (-0.0045, 0.3, 1.0045, 0.7))),  # rounding, as Ultralytics allows
    ],
)
def test_a_line(line: str, expected: tuple[int, tuple[float, ...]]) -> None:
    label, box, _ = parse_line(line, range(2))
    assert (label, box) == (expected[0], pytest.approx(expected[1]))


def test_a_line_of_a_pose_is_its_box() -> None:
    numbers = "0 0.5 0.5 0.2 0.4 " + "0.9 0.9 2 " * 4
    assert parse_line(numbers, range(1), 12)[1] == pytest.approx((0.4, 0.3, 0.6, 0.7))
    with pytest.raises(LineError):  # without kpt_shape it would be a polygon, and 2 is no fraction
        parse_line(numbers, range(1))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0", "count of numbers"),
        ("0 0.5 0.5 0.2", "count of numbers"),
        ("0 0.1 0.2 0.5 0.2 0.3 0.9 0.1", "count of numbers"),
        ("x 0.5 0.5 0.2 0.4", "class is no whole number"),
        ("0.5 0.5 0.5 0.2 0.4", "class is no whole number"),
        ("nan 0.5 0.5 0.2 0.4", "class is no whole number"),
        ("2 0.5 0.5 0.2 0.4", "class that has no name"),
        ("-1 0.5 0.5 0.2 0.4", "class that has no name"),
        (f"{10**9} 0.5 0.5 0.2 0.4", "class that has no name"),
        (f"{'9' * 5000} 0.5 0.5 0.2 0.4", "class is no whole number"),
        ("0 0,5 0,5 0,2 0,4", "other than numbers"),
        ("0 nan 0.5 0.2 0.4", "not finite"),
        ("0 0.5 0.5 1e999 0.4", "not finite"),
        ("0 40 30 20 10", "outside 0–1"),
        ("0 0.5 0.5 -0.2 0.4", "outside 0–1"),
        ("0 0.5 0.5 1.02 0.4", "outside 0–1"),
    ],
)
def test_what_is_no_line(line: str, kind: str) -> None:
    with pytest.raises(LineError, match=kind):
        parse_line(line, range(2))


def test_the_rule_of_folders(picture: Make, text: Make) -> None:
    """The last `images` of the path becomes `labels`; sub-folders stay; a missing file and an empty one mean none."""
    for name in ("images/train/a.jpg", "images/train/more/a.png", "images/train/none.jpg", "images/train/empty.jpg"):
        picture(name)
    text("labels/train/a.txt", BOX)
    text("labels/train/more/a.txt", "1 0.5 0.5 0.5 0.5\n\n" + BOX)
    text("labels/train/empty.txt", "\n")
    file = text("data.yaml", "train: images/train\nval: images/train/more\nnames: [red, dark green]\n")
    found = read(file)
    assert found.categories == {1: "red", 2: "dark green"}
    assert [image.path.relative_to(file.parent / "images/train").as_posix() for image in found.images] == [
        "a.jpg",
        "empty.jpg",
        "more/a.png",
        "none.jpg",
    ]
    assert boxes(found) == {
        "a.jpg": [(1, 30, 15, 50, 45)],
        "a.png": [(2, 20, 15, 60, 45), (1, 30, 15, 50, 45)],
        "none.jpg": [],
        "empty.jpg": [],
    }
    assert found.problems == ("1 × image without a label file, taken as one without objects: images/train/none.jpg",)
    assert list(boxes(read(file, "val"))) == ["a.png"]


@pytest.mark.parametrize("names", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_labels_beside_the_images_and_a_folder_without_yaml(
    names: str, picture: Make, text: Make, tmp_path: Path
) -> None:
    """LabelImg's export: images, labels and classes.txt in one folder; Label Studio's and darknet's."""
    picture("images/a.jpg" if "/" in names else "a.jpg")
    text("labels/a.txt" if "/" in names else "a.txt", BOX)
    text(names, "red\ngreen\n")
    found = read(tmp_path)
    assert (boxes(found), found.categories) == ({"a.jpg": [(1, 30, 15, 50, 45)]}, {1: "red", 2: "green"})
    assert found.problems == ()


@pytest.mark.parametrize("form", ["relative", "dotted", "to the root", "absolute", "windows"])
def test_a_list_of_images(form: str, picture: Make, text: Make) -> None:
    image = picture("set/images/a.jpg")
    text("set/labels/a.txt", BOX)
    line = {
        "relative": "../images/a.jpg",
        "dotted": "./../images/a.jpg",
        "to the root": "images/a.jpg",
        "absolute": str(image),
        "windows": "..\\images\\a.jpg",
    }[form]
    text("set/lists/train.txt", f"\ufeff{line}\r\n\r\n")
    found = read(text("set/data.yaml", "path: .\ntrain: lists/train.txt\nnames: {0: red}\n"))
    assert boxes(found) == {"a.jpg": [(1, 30, 15, 50, 45)]}
    assert (found.root, found.problems) == (image.parent, ())


def test_several_folders_and_a_split_by_another_name(picture: Make, text: Make) -> None:
    for name in "ab":
        picture(f"{name}/images/{name}.jpg")
        text(f"{name}/labels/{name}.txt", BOX)
    file = text("data.yaml", "train: [a/images, b/images]\nvalidation: b/images\nnames: ['red']\n")
    found = read(file)
    assert (list(boxes(found)), found.root) == (["a.jpg", "b.jpg"], file.parent)
    assert list(boxes(read(file, "val"))) == ["b.jpg"]
    with pytest.raises(LayoutError, match=r"no split 'test' \(splits there: train, val\)"):
        read(file, "test")


@pytest.mark.parametrize(
    "yaml",
    ["train: ../train/images", "path: /content/nowhere\ntrain: train/images", "path: ../set\ntrain: train/images"],
)
def test_paths_of_other_machines(yaml: str, picture: Make, text: Make) -> None:
    """Roboflow's `../train/images`, and the absolute path of a notebook."""
    picture("set/train/images/a.jpg")
    text("set/train/labels/a.txt", BOX)
    found = read(text("set/data.yaml", yaml + "\nnames: [red]\n"))
    assert boxes(found) == {"a.jpg": [(1, 30, 15, 50, 45)]}
    assert ("'path' that is not on this machine" in " ".join(found.problems)) == ("nowhere" in yaml)


def test_names_stay_as_they_are_written(picture: Make, text: Make) -> None:
    """YAML 1.1 takes `no` for false and 1e3 for a number; these are names of classes."""
    picture("a.jpg")
    text("a.txt", "2 0.5 0.5 0.5 0.5")
    found = read(text("data.yaml", "train: .\nnc: 9\nnames: {0: no, 2: 1e3, 7: größe}\n"))
    assert found.categories == {1: "no", 3: "1e3", 8: "größe"}
    assert boxes(found)["a.jpg"][0][0] == 3


def test_what_is_dropped_is_said(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("images/a.jpg")
    picture("images/b.jpg")
    text("images/broken.jpg", b"GIF no picture")
    text("labels/broken.txt", BOX)
    text("labels/a.txt", BOX + "3 0.5 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n0 0.9 0.5 0.5 0.5\n0 0.5 0.5 0 0.1\n")
    text("labels/b.txt", "0 400 300 20 10\n0 0.5 0.5 0.1 0.1 0.8\n")
    found = read(text("data.yaml", "train: images\nnames: [red]\n"))
    assert boxes(found) == {"a.jpg": [(1, 30, 15, 50, 45), (1, 52, 15, 80, 45)], "b.jpg": [(1, 36, 27, 44, 33)]}
    assert [line.partition(": ")[0].partition(" × ")[2].partition(" (")[0] for line in found.problems] == [
        "line of a class that has no name, dropped",
        "line with a number that is not finite, dropped",
        "box that reaches beyond its image, clipped",
        "box of zero or negative size, dropped",
        "line with a number outside 0–1",
        "line with a sixth number",
        "image that cannot be read, left out",
    ]
    assert "labels/a.txt:2 (class 3)" in found.problems[0]
    assert "labels/a.txt:4" in found.problems[2]


def test_an_image_upright_as_its_exif_says(picture: Make, text: Make) -> None:
    Image = pytest.importorskip("PIL.Image", reason="writes the orientation")
    path = picture("a.jpg", width=80, height=60)
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).save(path, exif=exif)
    text("a.txt", BOX)
    found = read(text("data.yaml", "train: .\nnames: [red]\n"))
    assert found.images[0].size_hw == (80, 60)
    assert boxes(found) == {"a.jpg": [(1, 22, 20, 38, 60)]}


def test_suffixes_in_capitals(picture: Make, text: Make) -> None:
    picture("images/A.JPG")
    text("labels/A.TXT", BOX)
    found = read(text("data.yaml", "train: images\nnames: [red]\n"))
    assert (boxes(found), found.problems) == ({"A.JPG": [(1, 30, 15, 50, 45)]}, ())


def test_classes_that_are_only_counted(picture: Make, text: Make) -> None:
    picture("a.jpg")
    text("a.txt", BOX)
    assert read(text("data.yaml", "train: .\nnc: 2\n")).categories == {1: "class_0", 2: "class_1"}
    for count in ("0", "-1", "1e9", "two"):
        with pytest.raises(LayoutError, match="expected class names"):
            read(text("data.yaml", f"train: .\nnc: {count}\n"))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("", "expected a mapping"),
        ("- train", "expected a mapping"),
        ("train: [\n", "not valid YAML"),
        ("train: .\n", "expected class names"),
        ("train: .\nnames: []\n", "expected class names"),
        ("train: .\nnames: red\n", "expected class names"),
        ("train: .\nnames: {red: 0}\n", "expected a class number"),
        ("train: .\nnames: {-1: red}\n", "expected a class number"),
        ("train: .\nnames: {1e300: red}\n", "expected a class number"),
        ("train: .\nnames: [[red]]\n", "class 0 has no name"),
        ("train: .\nnames: [red, red]\n", "two classes are called 'red'"),
        ("train: .\nnc: 1\nnames: [red, green]\n", "nc is '1', but there are 2 names"),
        ("train: .\nnames: [red]\nkpt_shape: [17]\n", "kpt_shape"),
        ("train: nowhere\nnames: [red]\n", "train names 'nowhere', which is not there"),
        ("train: {a: b}\nnames: [red]\n", "expected a folder, a list of images"),
        ("val: .\nnames: [red]\n", r"no split 'train' \(splits there: val\)"),
        ("train: empty\nnames: [red]\n", "has no image in empty"),
        ("train: list.txt\nnames: [red]\n", "the list is empty"),
        ("a: &a [x]\nnames: [*a]\ntrain: .\n", "YAML alias"),
        ("train: !!python/object/apply:os.system [echo]\nnames: [red]\n", "train names 'echo'"),  # a text, not a call
    ],
)
def test_what_cannot_be_read(yaml: str, message: str, picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    text("a.txt", BOX)
    text("list.txt", "\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LayoutError, match=message):
        read(text("data.yaml", yaml))


def test_a_class_number_of_a_billion_takes_no_memory(picture: Make, text: Make) -> None:
    picture("a.jpg")
    text("a.txt", "1000000000 0.5 0.5 0.5 0.5")
    found = read(text("data.yaml", "train: .\nnames: {1000000000: red}\n"))
    assert found.categories == {1_000_000_001: "red"}
    assert found.object_count == 1


def test_without_a_single_label_file_nothing_is_read(picture: Make, text: Make) -> None:
    """A wrong folder of labels would be a data set of empty images."""
    picture("images/a.jpg")
    text("label/a.txt", BOX)
    with pytest.raises(LayoutError, match=r"no image of split 'train' has a label file; there is neither .*labels/a"):
        read(text("data.yaml", "train: images\nnames: [red]\n"))


def test_images_outside_the_data_set_are_said(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("private/a.jpg")
    text("private/a.txt", BOX)
    text("set/train.txt", f"{tmp_path}/private/a.jpg\n{tmp_path}/private/a.jpg\n/etc/hostname\n{tmp_path}/private\n")
    found = read(text("set/data.yaml", "train: train.txt\nnames: [red]\n"))
    assert list(boxes(found)) == ["a.jpg"]
    said = " | ".join(found.problems)
    assert f"image outside the data set's folder {tmp_path}/set, read as it is listed: {tmp_path}/private/a.jpg" in said
    assert "image listed more than once, taken once" in said
    assert "2 × image that cannot be read, left out: /etc/hostname" in said


def test_without_pyyaml_one_line_says_so(text: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UserError, match=r"read with PyYAML, which is not installed: install atss-toolkit\[train\]"):
        read(text("data.yaml", "train: .\nnames: [red]\n"))


def test_a_pipe_in_the_place_of_labels_does_not_wait(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    picture("b.jpg")
    text("b.txt", BOX)
    os.mkfifo(tmp_path / "a.txt")
    found = read(text("data.yaml", "train: .\nnames: [red]\n"))
    assert list(boxes(found)) == ["b.jpg"]
    assert "image whose labels cannot be read, left out: a.txt (not a file)" in found.problems[0]


def test_links_and_names_that_are_not_utf8(picture: Make, text: Make, tmp_path: Path) -> None:
    """Labels lie beside the link, not beside what it leads to; names come through a COCO file as they are."""
    stored = picture("store/photo.jpg")
    folder = tmp_path / "set" / "images"
    folder.mkdir(parents=True)
    (folder / "link.jpg").symlink_to(stored)
    odd = os.fsdecode(b"\xff \xe9.jpg")
    (folder / odd).write_bytes(stored.read_bytes())
    text("set/labels/link.txt", BOX)
    (tmp_path / "set" / "labels" / odd).with_suffix(".txt").write_text(BOX)
    found = read(text("set/data.yaml", "train: images\nnames: [red]\n"))
    assert {image.path.name: len(image.objects) for image in found.images} == {"link.jpg": 1, odd: 1}
    written = text("out.json", json.dumps(as_coco(found)))
    dataset = load_coco(written, found.root)
    assert all(dataset.path(index).is_file() for index in range(2))


def test_a_name_with_a_line_break_stays_on_its_line(picture: Make, text: Make) -> None:
    picture("images/a.jpg")
    picture("images/b\n\x1b[31m.jpg")
    text("labels/a.txt", BOX)
    found = read(text("data.yaml", "train: images\nnames: [red]\n"))
    assert [line.rpartition(": ")[2] for line in found.problems] == ["images/b\\n\\x1b[31m.jpg"]
