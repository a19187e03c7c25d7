"""The files and sizes of a file's images: what their entries say, and what the image folder has to say to it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from ...images import ImageError, image_size
from .ids import whole_number
from .values import CocoError, Problems, is_missing, shown

LARGEST_SIDE = 2**31  # px; heights and widths stay below
UNKNOWN = 1  # px; stands for the sides of an image whose size nothing says


class ImageFiles(NamedTuple):
    """Where the images lie, and how large they are."""

    names: list[str]  # relative to the image folder, where they lie in it
    sizes_hw: np.ndarray  # int32 [I, 2]; UNKNOWN where nothing says the size
    is_known: np.ndarray  # bool [I]: whether the size is known


def image_files(
    content: dict[str, Any], where: str, root: Path | None, allow_outside: bool, problems: Problems
) -> ImageFiles:
    """Names and sizes of a file's images. `root` is the image folder; without it nothing is looked for on the disk.

    A size that an entry lacks is read from the file's header; where a file can't be read, this is added to `problems`.
    Raises CocoError, whose text begins with `where`, for a size that is none, for a name that is none or leads out of
    the image folder unless `allow_outside`, and where no size of those that the entries lack can be read.
    """
    images, written = content["images"], content["written_image_ids"]

    def who(place: int) -> str:
        return f"{where}: image {shown(images[place]['id'] if written is None else written[place])}"

    names = [_name(image, place, who, root, allow_outside) for place, image in enumerate(images)]
    if len(set(names)) < len(names):
        for name in (name for name, count in Counter(names).items() if count > 1):
            problems.add("file of more than one image, each with its own annotations", name)
    sizes = [_size_hw(image, place, who) for place, image in enumerate(images)]
    lacking = [place for place, size in enumerate(sizes) if size is None]
    failed: list[ImageError] = []
    for place in lacking:
        if root is None:
            break
        try:
            sizes[place] = image_size(root / names[place])
        except ImageError as error:
            failed.append(error)
            problems.add("image without width and height whose file can't be read", names[place])
    if failed and len(failed) == len(lacking):
        image = images[lacking[0]]
        raise CocoError(
            f"{who(lacking[0])} has height {shown(image.get('height'))} and width {shown(image.get('width'))}, "
            f"expected its size in pixels, and the file doesn't say it: {failed[0]}"
        )
    known = np.array([size is not None for size in sizes], bool)
    sides = np.array([size or (UNKNOWN, UNKNOWN) for size in sizes], np.int32).reshape(-1, 2)
    return ImageFiles(names, sides, known)


def _size_hw(image: dict[str, Any], place: int, who: Callable[[int], str]) -> tuple[int, int] | None:
    """Height and width of an entry; None where it lacks one (absent, null, NaN, or 0 as Datumaro writes it)."""
    sides = []
    for key in ("height", "width"):
        value = image.get(key)
        side = value if type(value) is int else whole_number(value)
        if not is_missing(value) and (side is None or not 0 <= side < LARGEST_SIDE):
            raise CocoError(f"{who(place)} has {key} {shown(value)}, expected its size in pixels")
        sides.append(side or 0)
    return (sides[0], sides[1]) if all(sides) else None


def _name(image: dict[str, Any], place: int, who: Callable[[int], str], root: Path | None, allow_outside: bool) -> str:
    """The file's path, relative to the image folder where it lies in it."""
    name = image.get("file_name")
    if (name is None or name == "") and isinstance(image.get("coco_url"), str):
        name = _name_of_url(image["coco_url"], root)
    if not isinstance(name, str) or not name or "\0" in name:
        raise CocoError(f"{who(place)} has file_name {shown(name)}, expected a path inside the image folder")
    if root is None:
        return name
    if "\\" in name and os.sep != "\\" and not os.path.exists(root / name):
        name = name.replace("\\", "/")  # written on Windows
    windows = PureWindowsPath(name)
    if not (windows.drive or windows.root or ".." in windows.parts):
        return name
    # Only the text is judged; links inside the folder are the user's choice.
    inside = _inside(name, root)
    if inside is not None:
        return inside
    leads_out = f"{who(place)} has file_name {shown(image.get('file_name'))}, which leads out of the image folder"
    if windows.drive and os.sep != "\\":
        raise CocoError(f"{leads_out}: a path of Windows; write it relative to the folder")
    if not allow_outside:
        raise CocoError(
            f"{leads_out} {root}; use a path inside it, or allow this with "
            "--allow-outside (in training --data.allow-outside)"
        )
    return name


def _inside(name: str, root: Path) -> str | None:
    """The path below the image folder that a name with `..` or an absolute name leads to; None where it leads out."""
    if PureWindowsPath(name).drive and os.sep != "\\":
        return None
    for folder in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
        path = os.path.normpath(os.path.join(folder, name))
        if path.startswith(os.path.join(folder, "")):
            return os.path.relpath(path, folder)
    return None


def _name_of_url(url: str, root: Path | None) -> str:
    """Folder and name, or the name alone, of LVIS's `coco_url`: whichever lies in the image folder."""
    parts = [part for part in PurePosixPath(unquote(urlsplit(url).path)).parts if part not in ("/", "..", ".")]
    long, short = "/".join(parts[-2:]), "".join(parts[-1:])
    if root is None or os.path.exists(root / long):
        return long
    return short if os.path.exists(root / short) or [root.name] == parts[-2:-1] else long
