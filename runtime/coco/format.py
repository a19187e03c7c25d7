"""What untrusted files in COCO's format must fulfil: JSON, ids, sizes and paths; and the counting of their problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from ..errors import UserError

LARGEST = 1e30  # numbers stay below; JSON's may have any size
PROBLEMS_NAMED = 5  # of each kind; further ones are only counted


class CocoError(UserError):
    """Annotations or results do not follow COCO's format."""


def read_json(path: Path, what: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parsed JSON of a file, every object passed through `object_hook`. `what` names it in a CocoError."""
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise CocoError(f"{path}: cannot read the {what}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise CocoError(f"{path}: the {what} are not valid JSON ({error}); the file may be cut short") from error


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number that a float can hold."""
    return is_number(value) and abs(value) < LARGEST


class Problems:
    """Counts problems by kind and remembers the names of the first few of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Count a problem of this kind with the thing called `name`."""
        self._counts[kind] += 1
        if self._counts[kind] <= PROBLEMS_NAMED:
            self._named.setdefault(kind, []).append(name)

    def lines(self) -> tuple[str, ...]:
        """A line per kind: how often it occurred, and the first names."""
        return tuple(
            f"{count} × {kind}: {', '.join(self._named[kind])}{' …' if count > PROBLEMS_NAMED else ''}"
            for kind, count in self._counts.items()
        )


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


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
