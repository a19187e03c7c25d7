"""CreateML: one JSON file, a list of images with their objects; boxes by centre and size, in pixels."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath
from typing import Any

from runtime.coco.format import CocoError, read_json
from runtime.coco.format.values import number_of

from .labeled import SPLITS, Collector, LabeledObject, LabeledSet, LayoutError, numbered

FILE_NAME = "_annotations.createml.json"  # Roboflow's
COORDINATES = ("x", "y", "width", "height")


def read_createml(path: Path, split: str) -> LabeledSet:
    """The images that a CreateML file lists; their names are relative to its folder, or to `images` in it.

    A folder stands for the JSON file in it, or for that in its folder of the split. A file is one split, whatever its
    name. Category ids count from 1 in the order of the names. Raises LayoutError.
    """
    file = _file(path, split)
    try:
        entries = read_json(file, "CreateML annotations")
    except CocoError as error:
        raise LayoutError(str(error)) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise LayoutError(f"{file}: not CreateML annotations; expected a list of images")
    found = Collector(file.parent.absolute())
    names = sorted({name for entry in entries for item in _items(entry) if (name := _label(item))})
    ids = {name: number for number, name in numbered(names).items()}
    for number, entry in enumerate(entries, start=1):
        image = _image(entry, number, file, found)
        size_hw = None if image is None else found.size_of(image)
        if image is not None and size_hw is not None:
            if not isinstance(_annotations(entry) or [], list):
                kind = "image whose annotations are no list, left out"
                found.problems.add(kind, found.name(image))
                continue
            found.add(image, size_hw, _objects(_items(entry), found.name(image), size_hw, ids, found))
    return found.finish(f"createml:{path}#{split}", numbered(names))


def _file(path: Path, split: str) -> Path:
    if not path.is_dir():
        return path
    own = [path / name for name in SPLITS.get(split, (split,)) if (path / name).is_dir()]
    folder = own[0] if own else path
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    named = [file for file in files if file.name == FILE_NAME]
    if len(named or files) != 1:
        raise LayoutError(f"{folder}: {len(files)} JSON files in this folder; name the one with the annotations")
    return (named or files)[0]


def _items(entry: dict[str, Any]) -> list[Any]:
    items = _annotations(entry)
    return items if isinstance(items, list) else []


def _annotations(entry: dict[str, Any]) -> Any:
    return entry.get("annotations", entry.get("annotation"))


def _label(item: Any) -> str:
    """The class of an object, a number too; an empty text where there is none."""
    label = item.get("label") if isinstance(item, dict) else None
    if isinstance(label, int) and not isinstance(label, bool) and abs(label) < 10**18:
        return str(label)
    return label.strip() if isinstance(label, str) else ""


def _image(entry: dict[str, Any], number: int, file: Path, found: Collector) -> Path | None:
    """The image of an entry inside the file's folder, or None and a problem."""
    name = next((entry[key] for key in ("image", "imagefilename", "imageFilename") if entry.get(key)), None)
    if not isinstance(name, str) or "\0" in name:
        found.problems.add("entry without the name of an image, left out", f"number {number}")
        return None
    windows = PureWindowsPath(name)
    inside = Path(os.path.normpath(file.parent.absolute() / windows.as_posix()))
    if windows.drive or windows.root or name.startswith("/") or not inside.is_relative_to(file.parent.absolute()):
        found.problems.add("image whose name leads out of the file's folder, left out", name[:120])
        return None
    relative = inside.relative_to(file.parent.absolute())
    places = [inside, file.parent.absolute() / "images" / relative]
    return next((place for place in places if place.is_file()), inside)


def _objects(
    items: list[Any], image: str, size_hw: tuple[int, int], ids: dict[str, int], found: Collector
) -> list[LabeledObject]:
    objects = []
    for number, item in enumerate(items, start=1):
        name, label = f"{image}, object {number}", _label(item)
        if not label:
            found.problems.add("object without a label, dropped", name)
            continue
        box = item.get("coordinates")
        numbers = [number_of(box.get(key)) for key in COORDINATES] if isinstance(box, dict) else [None]
        if None in numbers:
            found.problems.add("object whose coordinates are not x, y, width and height, dropped", name)
            continue
        x, y, width, height = (number or 0.0 for number in numbers)
        corners = found.box((x - width / 2, y - height / 2, x + width / 2, y + height / 2), size_hw, name)
        if corners is not None:
            objects.append(LabeledObject(ids[label], corners))
    return objects
