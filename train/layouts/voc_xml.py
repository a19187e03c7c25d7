"""One annotation file of Pascal VOC: what it says of its image and its objects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from .files import read_xml
from .labeled import LayoutError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LARGEST_SIDE = 1 << 31


class VocObject(NamedTuple):
    """An object as annotated; one that cannot be used has a `problem` in the place of its corners."""

    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    is_difficult: bool
    problem: str = ""


class VocFile(NamedTuple):
    """What an annotation file says."""

    filename: str  # of the image; empty where the file has none
    size_hw: tuple[int, int] | None  # None where it is missing or 0
    objects: tuple[VocObject, ...]


def read_voc_file(path: Path) -> VocFile:
    """Parse an annotation file. Raises LayoutError where it is no XML, or XML of another kind.

    Only the object's own box counts; the boxes of its parts (head, hand, foot) are not objects.
    """
    root = read_xml(path)
    if root.tag != "annotation":
        raise LayoutError(f"{path}: its root is <{root.tag[:40]}>, expected <annotation>")
    size = root.find("size")
    sides = [None, None] if size is None else [_number(size, key) for key in ("height", "width")]
    known = all(side is not None and side.is_integer() and 1 <= side < LARGEST_SIDE for side in sides)
    return VocFile(
        filename=_text(root, "filename").replace("\\", "/"),
        size_hw=(int(sides[0] or 0), int(sides[1] or 0)) if known else None,
        objects=tuple(_object(element) for element in root.findall("object")),
    )


def _object(element: Element) -> VocObject:
    name, box, problem = _text(element, "name"), element.find("bndbox"), ""
    numbers = [None] * 4 if box is None else [_number(box, key) for key in CORNERS]
    corners = [math.nan if number is None else number for number in numbers]
    if not name:
        problem = "object without a name"
    elif box is None:
        polygon = element.find("polygon")
        xs, ys = _points(polygon) if polygon is not None else ([], [])
        if len(xs) >= 3 and len(xs) == len(ys):
            corners = [min(xs), min(ys), max(xs), max(ys)]
        else:
            problem = "object without a bndbox"
    elif not all(map(math.isfinite, corners)):
        problem = "object whose bndbox is not four numbers"
    is_difficult = _text(element, "difficult").lower() in ("1", "true", "yes")
    return VocObject(name, (corners[0], corners[1], corners[2], corners[3]), is_difficult, problem)


def _points(polygon: Element) -> tuple[list[float], list[float]]:
    """The x and y of a polygon's points, named x1, y1, x2 and so on, or x and y of <pt> or <point>."""
    xs, ys = list[float](), list[float]()
    for element in polygon.iter():
        number = _value(element.text)
        if number is not None and element.tag[:1] in ("x", "y") and element.tag[1:].isdigit() | (len(element.tag) == 1):
            (xs if element.tag[0] == "x" else ys).append(number)
    return xs, ys


def _text(element: Element, key: str) -> str:
    return (element.findtext(key) or "").strip()


def _number(element: Element, key: str) -> float | None:
    return _value(element.findtext(key))


def _value(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
