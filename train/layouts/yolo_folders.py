"""Where a YOLO data set keeps its images and labels: the rules of Ultralytics' data.yaml, and folders without one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from runtime.images.finder import OTHER, find_images

from .files import read_text, read_yaml
from .labeled import SPLITS, Collector, LayoutError

YAML_SUFFIXES = (".yaml", ".yml")
# Of data sets without data.yaml: Label Studio's, LabelImg's with its labels in a folder of their own, and darknet's.
NAME_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
LARGEST_CLASS = 1 << 53  # class numbers stay below
MOST_UNNAMED = 100_000  # classes that data.yaml only counts


class YoloFolders(NamedTuple):
    """What a data.yaml says, or a folder without one."""

    file: Path  # that has the names
    root: Path  # relative paths begin here
    names: dict[int, str]  # by class number
    keypoint_numbers: int  # that follow the box on a line of pose labels; 0: none do
    entries: dict[str, list[str]]  # folders and lists of images, by split
    missing_root: str = ""  # the `path` that is not on this machine; `root` is the file's folder then


def read_folders(path: Path) -> YoloFolders:
    """What a data.yaml says, or a folder that holds one. Raises LayoutError.

    A folder without data.yaml but with a classes.txt (LabelImg, Label Studio) is one split, whatever its name.
    """
    if path.is_dir():
        named = [path / f"data{suffix}" for suffix in YAML_SUFFIXES]
        found = [file for file in named if file.is_file()] or sorted(
            file for file in path.iterdir() if file.suffix.lower() in YAML_SUFFIXES
        )
        if not found:
            return _without_yaml(path)
        if len(found) > 1:
            raise LayoutError(f"{path}: several YAML files ({', '.join(f.name for f in found)}); name the one to read")
        path = found[0]
    content = read_yaml(path)
    entries = {}
    for split, keys in SPLITS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        if given is not None:
            entries[split] = _texts(given, f"{path}: {split}")
    names = _names(content.get("names"), content.get("nc"), path)
    given_root = content.get("path")
    text = _texts(given_root, f"{path}: path")[0] if given_root else ""
    root = _root(text, path)
    missing = text if root is None else ""
    root = path.parent.absolute() if root is None else root
    return YoloFolders(path, root, names, _keypoint_numbers(content, path), entries, missing)


def images_of(folders: YoloFolders, split: str, found: Collector) -> list[Path]:
    """The images of a split, in order. What its folders leave out goes into the problems of `found`.

    Raises LayoutError where there is no such split, folder or list.
    """
    if split not in folders.entries:
        there = ", ".join(folders.entries) or "none"
        raise LayoutError(
            f"{folders.file}: no split {split!r} (splits there: {there}); add it, or name another: #SPLIT"
        )
    if folders.missing_root:
        kind = f"'path' that is not on this machine, {folders.root} was taken"
        found.problems.add(kind, f"{folders.missing_root} in {found.name(folders.file)}")
    paths: list[Path] = []
    for entry in folders.entries[split]:
        place = _first(_places(entry, folders))
        if place is None:
            tried = ", ".join(dict.fromkeys(map(os.fspath, _places(entry, folders))))
            raise LayoutError(f"{folders.file}: {split} names {entry!r}, which is not there (tried {tried})")
        if place.is_dir():
            images = find_images(place)
            for line in images.left_out:
                if OTHER not in line:
                    found.problems.add("kind of entry left out", f"in {found.name(place)}: {line}")
            paths += images.paths
        else:
            paths += _listed(place, folders)
    if not paths:
        raise LayoutError(f"{folders.file}: split {split!r} has no image in {', '.join(folders.entries[split])}")
    return paths


def label_file(image: Path) -> Path | None:
    """The file with an image's labels, whose suffix may be in capitals; None where there is none."""
    places = label_places(image)
    return next((place for place in (*places, *(p.with_suffix(".TXT") for p in places)) if place.exists()), None)


def label_places(image: Path) -> list[Path]:
    """Where an image's labels may lie: in `labels` for the last `images` of its path, then beside the image."""
    places = []
    folders = image.parent.parts
    for number in range(len(folders) - 1, -1, -1):
        if folders[number] == "images":
            parts = (*folders[:number], "labels", *folders[number + 1 :])
            places.append(Path(*parts, image.name).with_suffix(".txt"))
            break
    return [*places, image.with_suffix(".txt")]


def _without_yaml(folder: Path) -> YoloFolders:
    for name in NAME_FILES:
        file = folder / name
        if file.is_file():
            lines = [line.strip() for line in read_text(file).splitlines()]
            names = {number: line for number, line in enumerate(lines) if line}
            if not names:
                raise LayoutError(f"{file}: no class names; expected one a line")
            return YoloFolders(file, folder, names, 0, {key: [os.fspath(folder.absolute())] for key in SPLITS})
    raise LayoutError(f"{folder}: neither a data.yaml nor a {' or '.join(NAME_FILES)} in this folder")


def _root(text: str, file: Path) -> Path | None:
    """The folder that `path` means: absolute, beside the YAML file, or in the working folder; None: it isn't there.

    Many files name a folder of the machine that they were written on; what lies beside the file is then meant.
    """
    if not text:
        return file.parent.absolute()
    return _first([*_spellings(file.parent / text), *_spellings(Path(text))])


def _places(entry: str, folders: YoloFolders) -> list[Path]:
    """Where an entry may lie: below the root (Roboflow's ../ too), beside the YAML file, in the working folder."""
    beside = folders.file.parent
    places = [folders.root / entry]
    if entry.startswith("../"):
        places += [folders.root / entry[3:], beside / entry[3:]]
    places += [beside / entry, Path(entry).absolute()]
    return [spelling for place in places for spelling in _spellings(place)]


def _spellings(path: Path) -> list[Path]:
    """The path, and where it has Windows' separators the path with the system's own."""
    text = os.fspath(path)
    return [path, Path(text.replace("\\", "/"))] if "\\" in text and os.sep == "/" else [path]


def _first(places: Iterable[Path]) -> Path | None:
    """The first path that is there, `..` resolved by its text, so that an image has one name."""
    for place in places:
        try:
            if place.exists():
                return Path(os.path.normpath(place.absolute()))
        except (OSError, ValueError):  # too long, or a NUL
            continue
    return None


def _listed(file: Path, folders: YoloFolders) -> list[Path]:
    """The images that a text file lists, relative to it, to the root or to the working folder; missing ones too."""
    images = []
    for line in read_text(file).splitlines():
        name = line.strip()
        if not name or "\0" in name:
            continue
        places = [place for base in (file.parent, folders.root, Path()) for place in _spellings(base / name)]
        images.append(_first(places) or Path(os.path.normpath((file.parent / name).absolute())))
    if not images:
        raise LayoutError(f"{file}: the list is empty; expected an image a line")
    return images


def _texts(value: Any, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text and "\0" not in text for text in texts):
        raise LayoutError(f"{where}: expected a folder, a list of images (.txt), or several of them")
    return texts


def _names(names: Any, count: Any, file: Path) -> dict[int, str]:
    """Class names by number, from a list or a mapping."""
    if names is None and (nc := whole_number(count)) and 0 < nc <= MOST_UNNAMED:
        names = [f"class_{number}" for number in range(nc)]  # as Ultralytics calls them
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise LayoutError(f"{file}: expected class names under 'names', as a list or by number")
    found: dict[int, str] = {}
    for key, name in names.items():
        number = whole_number(key)
        if number is None or not 0 <= number < LARGEST_CLASS:
            raise LayoutError(f"{file}: names has the key {str(key)[:40]!r}, expected a class number")
        if not isinstance(name, str) or not name.strip():
            raise LayoutError(f"{file}: class {number} has no name; expected a text")
        found[number] = name.strip()
    given = whole_number(count) if count not in (None, "") else len(found)
    if given is None or given < len(found):
        raise LayoutError(f"{file}: nc is {str(count)[:40]!r}, but there are {len(found)} names; correct either")
    if len(set(found.values())) < len(found):
        twice = next(name for name in found.values() if list(found.values()).count(name) > 1)
        raise LayoutError(f"{file}: two classes are called {twice!r}; give them different names")
    return dict(sorted(found.items()))


def _keypoint_numbers(content: dict[str, Any], file: Path) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    numbers = [whole_number(value) for value in shape] if isinstance(shape, list) else []
    if len(numbers) != 2 or any(number is None or not 1 <= number < 10_000 for number in numbers):
        raise LayoutError(f"{file}: kpt_shape is not [number of key points, 2 or 3]; correct or delete it")
    return (numbers[0] or 0) * (numbers[1] or 0)


def whole_number(text: Any) -> int | None:
    """A whole number from its text, `1.0` and `1e0` too; None for anything else, and for one that is too large."""
    if isinstance(text, int):
        return text
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if abs(number) < LARGEST_CLASS and number.is_integer() else None
