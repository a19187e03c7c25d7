"""Data sets as other tools lay them out: YOLO, Pascal VOC and CreateML, as files of a folder with one image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from ..mutation import NUMBERS, TEXTS, damaged, json_files
from ..target import Target, require

_YAML = "path: .\ntrain: images/train\nval: images/train\nnc: 2\nnames: [red, other]\n"
_NAMES = "path: .\ntrain: images/train\nnames:\n  0: red\n  1: other\n"
_LABELS = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.5 0.5\n0 0.1 0.1 0.9 0.1 0.9 0.9\n"
_XML = """<annotation>
  <folder>VOC</folder><filename>a.jpg</filename>
  <size><width>80</width><height>60</height><depth>3</depth></size>
  <object><name>red</name><difficult>0</difficult><truncated>1</truncated>
    <bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
  <object><name>other</name><difficult>1</difficult>
    <bndbox><xmin>5.5</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
</annotation>
"""
_BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + "]>"
)
_YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)
_CREATEML = [
    {
        "image": "a.jpg",
        "annotations": [
            {"label": "red", "coordinates": {"x": 20, "y": 25, "width": 10, "height": 12}},
            {"label": "other", "coordinates": {"x": 40.5, "y": 30, "width": 20, "height": 12}},
        ],
    }
]


@st.composite
def _text(draw: DrawFn, valid: str, extra: tuple[str, ...] = ()) -> bytes:
    """A text with numbers or words exchanged, lines doubled or taken out, or damaged bytes."""
    values = (*map(str, NUMBERS), *TEXTS, *extra)
    text = valid
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        words = list(re.finditer(r"[\w.]+", text))
        lines = text.splitlines(keepends=True)
        match draw(st.sampled_from(("word", "word", "word", "line", "twice", "insert", "bytes"))):
            case "word" if words:
                word = draw(st.sampled_from(words))
                text = text[: word.start()] + draw(st.sampled_from(values)) + text[word.end() :]
            case "line" if lines:
                del lines[draw(st.integers(0, len(lines) - 1))]
                text = "".join(lines)
            case "twice" if lines:
                lines.insert(0, draw(st.sampled_from(lines)))
                text = "".join(lines)
            case "insert":
                at = draw(st.integers(0, len(text)))
                text = text[:at] + draw(st.sampled_from(values)) + text[at:]
            case "bytes":
                return draw(damaged(text.encode("utf-8", "surrogatepass")))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def _yolo(draw: DrawFn, picture: bytes) -> dict[str, bytes]:
    yaml, labels = draw(st.sampled_from((_YAML, _NAMES))).encode(), _LABELS.encode()
    if draw(st.booleans()):
        yaml = draw(_text(yaml.decode(), ("!!python/object/apply:os.system [x]", "&a *a", _YAML_BOMB)))
    else:
        labels = draw(_text(_LABELS))
    return {"data.yaml": yaml, "images/train/a.jpg": picture, "labels/train/a.txt": labels}


@st.composite
def _voc(draw: DrawFn, picture: bytes) -> dict[str, bytes]:
    listed = draw(_text("a\n")) if draw(st.integers(0, 4)) == 4 else b"a\n"
    return {
        "VOC/JPEGImages/a.jpg": picture,
        "VOC/Annotations/a.xml": draw(_text(_XML, (_BOMB, "&lol;", "<object>", "</annotation>", "<![CDATA["))),
        "VOC/ImageSets/Main/train.txt": listed,
    }


@st.composite
def _createml(draw: DrawFn, picture: bytes) -> dict[str, bytes]:
    return {"a.jpg": picture, "createml.json": draw(json_files(_CREATEML, 3))}


def _read(source: str) -> str:
    """The set is read as COCO's format has it: boxes inside their images, known classes, nothing lost in silence."""
    from train.inspect.opened import open_data
    from train.layouts import parse_source, read_source

    parsed = parse_source(source)
    labeled = read_source(parsed, "train")
    require(len(labeled.images) >= 1, "a set without images")
    for image in labeled.images:
        require(image.path.exists(), f"{image.path} is not there")
        require(min(image.size_hw) >= 1, f"a size of {image.size_hw}")
        for found in image.objects:
            require(found.category_id in labeled.categories, f"category {found.category_id}")
            require(all(np.isfinite(value) for value in found.box), f"a box of {found.box}")
    require(all(labeled.categories.values()), "a class without a name")
    opened = open_data(parsed, "train")
    kept, given = len(opened.dataset.boxes), sum(len(image.objects) for image in labeled.images)
    require(kept == given or bool(opened.problems), f"{given} objects read, {kept} kept, and no problem named")
    return f"{len(labeled.images)} images, {given} objects, {len(opened.problems)} problems"


def _picture(seeds: Path) -> bytes:
    return (seeds / "pictures" / "plain.jpg").read_bytes()


TARGETS = {
    "YOLO data sets": Target(
        lambda seeds: _yolo(_picture(seeds)), lambda folder, _: _read(f"yolo:{folder / 'data.yaml'}"), 1.5, 40
    ),
    "Pascal VOC data sets": Target(
        lambda seeds: _voc(_picture(seeds)), lambda folder, _: _read(f"voc:{folder / 'VOC'}"), 1.5, 40
    ),
    "CreateML data sets": Target(
        lambda seeds: _createml(_picture(seeds)),
        lambda folder, _: _read(f"createml:{folder / 'createml.json'}"),
        1,
        30,
    ),
}
