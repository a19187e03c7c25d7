"""What the entries of a file in COCO's format must fulfil: ids, names, sizes and paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from .values import CocoError, Problems


def categories(content: dict[str, Any], problems: Problems) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids in rising order, and their names. A shared name gets the id appended, so that names are unique."""
    entries = sorted(content["categories"], key=lambda category: category["id"])
    counts = Counter(category["name"] for category in entries)
    names = []
    for category in entries:
        name = category["name"]
        if counts[name] > 1:
            name = f"{name} ({category['id']})"
            problems.add("category name used more than once, its id was appended", name)
        names.append(name)
    return tuple(category["id"] for category in entries), tuple(names)


def check_image_entry(image: dict[str, Any], path: Path) -> None:
    """Raise CocoError unless an image has a size and a file name inside the image folder."""
    where = f"{path}: image {image['id']}"
    for key in ("height", "width"):
        value = image.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise CocoError(f"{where} has {key} {value!r}, expected its size in pixels")
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise CocoError(f"{where} has file_name {name!r}, expected a path inside the image folder")
    # Only the text is judged, with the separators of both systems; links inside the folder are the user's choice.
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or ".." in windows.parts or name.startswith("/"):
        raise CocoError(f"{where} has file_name {name!r}, which leads out of the image folder; use a relative path")


def require_ids(entries: list[dict[str, Any]], where: str) -> None:
    """Raise CocoError, whose text begins with `where`, unless all entries have distinct integer ids."""
    for entry in entries:
        if not isinstance(entry.get("id"), int) or isinstance(entry["id"], bool) or abs(entry["id"]) >= 2**63:
            raise CocoError(f"{where}: id {entry.get('id')!r}, expected an integer")
    require_distinct((entry["id"] for entry in entries), where)


def require_distinct(ids: Iterable[Any], where: str) -> None:
    """Raise CocoError, whose text begins with `where`, if an id occurs twice."""
    twice = [value for value, count in Counter(map(repr, ids)).items() if count > 1]
    if twice:
        raise CocoError(f"{where}: id {twice[0]} occurs more than once ({len(twice)} such ids); ids must be distinct")
