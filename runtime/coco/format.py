"""Reads untrusted files in COCO's format: checks structure, ids and paths, and says why an annotation is unusable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from ..errors import UserError

PROBLEMS_NAMED = 5  # of each kind; further ones are only counted


class CocoError(UserError):
    """Annotations or results do not follow COCO's format."""


def read_coco_json(path: Path) -> dict[str, Any]:
    """The parsed content of an annotation file, without outlines. Raises CocoError if its structure is wrong.

    Required: `images`, `annotations` and `categories` are lists of objects; images have distinct integer ids, positive
    sizes and a file name that stays inside the image folder; category and annotation ids are distinct.
    """
    content = read_json(path, "annotations", _without_outline)
    if not isinstance(content, dict):
        raise CocoError(f"{path}: not COCO annotations; expected an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CocoError(f"{path}: not COCO annotations; expected a list of objects under {key!r}")
    for key in ("images", "categories"):
        if not content[key]:
            raise CocoError(f"{path}: the data set is empty: no {key}; check the file or the tool that wrote it")
        _require_ids(content[key], f"{path}: {key}")
    for image in content["images"]:
        _check_image_entry(image, path)
    for category in content["categories"]:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise CocoError(f"{path}: category {category['id']} has no name; expected a text under 'name'")
    _require_distinct((a["id"] for a in content["annotations"] if "id" in a), f"{path}: annotations")
    return content


def read_json(path: Path, what: str, object_hook: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Any:
    """Parsed JSON of a file, every object passed through `object_hook`. `what` names it in a CocoError."""
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise CocoError(f"{path}: cannot read the {what}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise CocoError(f"{path}: the {what} are not valid JSON ({error}); the file may be cut short") from error


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop an annotation's outline, which nothing here reads and which takes most of a large file's memory."""
    entry.pop("segmentation", None)
    return entry


def annotation_problem(annotation: dict[str, Any], image_ids: Any, category_ids: Any) -> str | None:
    """Why an annotation cannot be used, or None. The known ids may be any container."""
    if not _known(annotation.get("image_id"), image_ids):
        return "unknown image"
    if not _known(annotation.get("category_id"), category_ids):
        return "unknown category"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return "bbox that is not four numbers"
    if not all(is_finite(value) for value in box):
        return "box that is not finite"
    if box[2] <= 0 or box[3] <= 0:
        return "box of zero or negative size"
    return None


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number that a float can hold; JSON integers may have any length."""
    return _is_number(value) and abs(value) < 1e30


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


def _check_image_entry(image: dict[str, Any], path: Path) -> None:
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


def _require_ids(entries: list[dict[str, Any]], where: str) -> None:
    for entry in entries:
        if not isinstance(entry.get("id"), int) or isinstance(entry["id"], bool) or abs(entry["id"]) >= 2**63:
            raise CocoError(f"{where}: id {entry.get('id')!r}, expected an integer")
    _require_distinct((entry["id"] for entry in entries), where)


def _require_distinct(ids: Iterable[Any], where: str) -> None:
    twice = [value for value, count in Counter(map(repr, ids)).items() if count > 1]
    if twice:
        raise CocoError(f"{where}: id {twice[0]} occurs more than once ({len(twice)} such ids); ids must be distinct")


def _known(value: Any, ids: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in ids


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
