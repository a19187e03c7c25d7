"""Pascal VOC: pixels that count from 1, XML files that are hostile or wrong, and folders as tools write them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from tests.train.conftest import Make
from train.layouts import LabeledSet, LayoutError, parse_source, read_source
from train.layouts.files import read_xml


def xml(*objects: str, size: str = "<size><width>80</width><height>60</height></size>", name: str = "") -> str:
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def item(*corners: object, name: str = "dog", more: str = "") -> str:
    tags = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{tags}</bndbox></object>"


def read(path: Path, split: str = "train", layout: str = "voc") -> LabeledSet:
    return read_source(parse_source(f"{layout}:{path}"), split)


def boxes(found: LabeledSet) -> dict[str, list[tuple[object, ...]]]:
    names = found.categories
    return {image.path.name: [(names[o.category_id], *o.box) for o in image.objects] for image in found.images}


def test_pixels_count_from_1_and_corners_belong_to_the_box(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    text("a.xml", xml(item(1, 1, 80, 60), item(11, 21, 20, 30), item("10.5", " 5 ", "20.25", 9)))
    assert boxes(read(tmp_path))["a.jpg"] == [
        ("dog", 0, 0, 80, 60),
        ("dog", 10, 20, 20, 30),
        ("dog", 9.5, 4, 20.25, 9),
    ]


def test_files_that_count_from_0(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    text("a.xml", xml(item(0, 0, 80, 60), item(10, 20, 20, 30)))
    found = read(tmp_path, layout="voc0")
    assert boxes(found)["a.jpg"] == [("dog", 0, 0, 80, 60), ("dog", 10, 20, 20, 30)]
    assert found.problems == ()
    as_voc = read(tmp_path)
    assert boxes(as_voc)["a.jpg"] == [("dog", 0, 0, 80, 60), ("dog", 9, 19, 20, 30)]
    assert as_voc.problems == (
        "1 × bndbox that begins before pixel 1, where VOC begins (if the files count from 0, read voc0:): "
        "a.xml, object 1",
    )


def test_the_standard_folders_with_sub_folders_and_blanks(picture: Make, text: Make, tmp_path: Path) -> None:
    for name in ("JPEGImages/my photo.jpg", "JPEGImages/more/b.png", "JPEGImages/c.jpg", "JPEGImages/d.jpg"):
        picture(name)
    text("Annotations/my photo.xml", xml(item(1, 1, 9, 9, name=" guide dog ")))
    text("Annotations/more/b.xml", xml())
    text("Annotations/c.xml", xml(item(1, 1, 9, 9, name="ant")))
    text("Annotations/d.xml", xml(item(1, 1, 9, 9, name="cat")))
    text("ImageSets/Main/train.txt", "my photo\nmore/b\n\nmissing\n../../d\n")
    text("ImageSets/Main/val.txt", "c.jpg\nd -1\n")
    found = read(tmp_path)
    assert boxes(found) == {"my photo.jpg": [("guide dog", 0, 0, 9, 9)], "b.png": []}
    assert found.problems == ("2 × name in the list without an XML file, left out: missing, ../../d",)
    assert found.categories == {1: "ant", 2: "cat", 3: "guide dog"} == read(tmp_path, "val").categories
    assert list(boxes(read(tmp_path, "val"))) == ["c.jpg", "d.jpg"]
    with pytest.raises(LayoutError, match=r"no list test\.txt \(splits there: train, val\)"):
        read(tmp_path, "test")


def test_several_sets_in_one_folder(picture: Make, text: Make, tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        picture(f"{year}/JPEGImages/{year}.jpg")
        text(f"{year}/Annotations/{year}.xml", xml(item(1, 1, 9, 9)))
        text(f"{year}/ImageSets/Main/train.txt", f"{year}\n")
    found = read(tmp_path)
    assert (list(boxes(found)), found.root) == (["VOC2007.jpg", "VOC2012.jpg"], tmp_path)


def test_cvats_only_list_is_every_split(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("JPEGImages/a.jpg")
    text("Annotations/a.xml", xml(item(1, 1, 9, 9)))
    text("ImageSets/Main/default.txt", "a\n")
    assert list(boxes(read(tmp_path))) == list(boxes(read(tmp_path, "val"))) == ["a.jpg"]


def test_roboflows_folder_of_each_split(picture: Make, text: Make, tmp_path: Path) -> None:
    for split, name in (("train", "dog"), ("valid", "cat")):
        picture(f"{split}/{split}.jpg")
        text(f"{split}/{split}.xml", xml(item(1, 1, 9, 9, name=name)))
    assert boxes(read(tmp_path)) == {"train.jpg": [("dog", 0, 0, 9, 9)]}
    found = read(tmp_path, "val")
    assert (boxes(found), found.categories) == ({"valid.jpg": [("cat", 0, 0, 9, 9)]}, {1: "cat", 2: "dog"})
    with pytest.raises(LayoutError, match="no folder for split 'test'"):
        read(tmp_path, "test")


def test_the_files_own_name_finds_the_image(picture: Make, text: Make, tmp_path: Path) -> None:
    """<filename> is often that of another machine; it decides only where the file's own name doesn't."""
    for name in ("a.jpg", "other.jpg", "twice.jpg", "twice.png", "unclear.jpg", "unclear.png", "alone.jpg"):
        picture(name)
    text("a.xml", xml(name="other.jpg"))
    text("renamed.xml", xml(name="C:\\photos\\other.jpg"))
    text("twice.xml", xml(name="twice.png"))
    text("unclear.xml", xml(name="x.png"))
    text("gone.xml", xml(name="../../../etc/passwd"))
    found = read(tmp_path)
    assert list(boxes(found)) == ["a.jpg", "other.jpg", "twice.png"]
    said = " | ".join(found.problems)
    assert "1 × XML file without an image, left out: gone.xml" in said
    assert "1 × XML file with several images, left out: unclear.xml (unclear.jpg, unclear.png)" in said
    assert "2 × image without an XML file, left out" in said
    assert "alone.jpg, twice.jpg" in said


def test_difficult_objects_are_regions_to_ignore(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    marks = ("<difficult>1</difficult>", "<difficult>0</difficult><truncated>1</truncated>", "")
    text("a.xml", xml(*(item(1, 1, 9, 9, more=mark) for mark in marks)))
    assert [o.ignore for o in read(tmp_path).images[0].objects] == [True, False, False]


def test_parts_are_no_objects_and_polygons_are_boxes(picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    points = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate([(5, 9), (20, 3), (9, 30)], 1))
    text("a.xml", xml(item(1, 1, 9, 9, more=part), f"<object><name>cat</name><polygon>{points}</polygon></object>"))
    assert boxes(read(tmp_path))["a.jpg"] == [("dog", 0, 0, 9, 9), ("cat", 4, 2, 20, 30)]


def test_what_is_dropped_is_said(picture: Make, text: Make, tmp_path: Path) -> None:
    for name in "abcde":
        picture(f"{name}.jpg")
    text("a.xml", xml(item(9, 9, 1, 1), item(1, 1, 200, 60), item(90, 1, 99, 9), item("nan", 1, 9, 9)))
    text("b.xml", xml("<object><bndbox/></object>", "<object><name>x</name></object>", item("", "", 3, 4)))
    text("c.xml", xml(size="<size><width>60</width><height>80</height></size>"))
    text("d.xml", "<annotation><object>")
    text("e.xml", xml(item(5, 5, 4, 9)))
    text("f.xml", "<html></html>")
    found = read(tmp_path)
    assert boxes(found) == {"a.jpg": [("dog", 0, 0, 9, 9), ("dog", 0, 0, 80, 60)], "b.jpg": [], "e.jpg": [
        ("dog", 3, 4, 5, 9)
    ]}  # fmt: skip
    for line in (
        "2 × bndbox with its corners exchanged, put in order: a.xml, object 1, e.xml, object 1",
        "1 × box that reaches beyond its image, clipped: a.xml, object 2",
        "1 × box outside its image, dropped: a.xml, object 3",
        "2 × object whose bndbox is not four numbers, dropped: a.xml, object 4, b.xml, object 3",
        "1 × object without a name, dropped: b.xml, object 1",
        "1 × object without a bndbox, dropped: b.xml, object 2",
        "c.xml (says 60×80, is 80×60)",
        "d.xml (not valid XML (",
        "f.xml (its root is <html>, expected <annotation>)",
    ):
        assert line in " | ".join(found.problems)


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_missing_is_the_files(size: str, picture: Make, text: Make, tmp_path: Path) -> None:
    picture("a.jpg")
    text("a.xml", xml(item(1, 1, 9, 9), size=size))
    assert read(tmp_path).images[0].size_hw == (60, 80)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"<!DOCTYPE a [{LAUGHS}]><annotation>&l11;</annotation>", "declares the entity 'l0'"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "declares the entity"),
        ('<!DOCTYPE a [<!ENTITY % x SYSTEM "http://h/x.dtd"> %x;]><annotation/>', "declares the entity"),
        ("<a>" * 100_000, "nested more than 50 deep"),
        ("", "not valid XML"),
        (b"\x00\x01\x02", "not valid XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not valid XML"),
    ],
)
def test_hostile_files_are_refused_at_once(content: str | bytes, message: str, text: Make) -> None:
    path = text("a.xml", content)
    tracemalloc.start()
    with pytest.raises(LayoutError, match=message):
        read_xml(path)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


def test_other_encodings_and_a_harmless_doctype(picture: Make, text: Make, tmp_path: Path) -> None:
    for name, encoding in (("a", "utf-16"), ("b", "latin-1"), ("c", "utf-8-sig")):
        picture(f"{name}.jpg")
        declared = "" if encoding == "utf-8-sig" else f'<?xml version="1.0" encoding="{encoding}"?>'
        body = xml(item(1, 1, 9, 9, name="größe"))
        text(f"{name}.xml", f"{declared}<!DOCTYPE annotation>{body}".encode(encoding))
    assert read(tmp_path).categories == {1: "größe"}


def test_what_is_no_set(tmp_path: Path, text: Make) -> None:
    with pytest.raises(LayoutError, match="no XML file in this folder"):
        read(tmp_path)
    with pytest.raises(LayoutError, match="expected the folder"):
        read(text("a.xml", xml()))
    with pytest.raises(LayoutError, match=r"no image is left \(1 × XML file without an image, left out: a\.xml\)"):
        read(tmp_path)
