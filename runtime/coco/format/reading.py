"""Reads annotation files, and brings what tools write into one form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .annotations import Annotations
from .ids import IdTable, key_of
from .other_layouts import describe_list
from .packing import Packed, Packer
from .values import CocoError, Problems, is_finite, read_json, shown


def read_coco_json(path: Path) -> dict[str, Any]:
    """The content of an annotation file in the form of `normalised`. Raises CocoError if its structure is wrong."""
    packer = Packer()
    return normalised(read_json(path, "annotations", packer.pack), str(path), packer)


def normalised(content: Any, source: str, packer: Packer | None = None) -> dict[str, Any]:
    """A parsed file with integer ids and with "annotations" as Annotations; `content` stays as it is.

    `images` and `categories` have to be lists of objects with distinct ids, which may be anything that can be one (see
    IdTable), and categories need names. "annotations" may be absent, as in COCO's test sets. Where ids of images or
    categories are not integers, "written_image_ids" and "written_category_ids" have them as written, by entry; else
    these are None. "notes" has the kinds and names of what was mended; "annotated" is false for a test set.

    `packer` has the annotations that were packed while `source`, which messages name, was parsed. A content that this
    function made is returned as it is. Raises CocoError if the structure is wrong.
    """
    if (other := describe_list(content, source)) is not None:
        raise CocoError(f"{source}: not COCO annotations; {other}")
    if not isinstance(content, dict):
        raise CocoError(f"{source}: not COCO annotations; expected an object with images, annotations and categories")
    if isinstance(content.get("annotations"), Annotations):
        return content
    lists = {"annotations": [], **content}
    for key in ("images", "annotations", "categories"):
        entries = lists.get(key)
        kinds = dict | Packed if key == "annotations" else dict
        if not isinstance(entries, list) or not all(isinstance(entry, kinds) for entry in entries):
            raise CocoError(f"{source}: not COCO annotations; expected a list of objects under {key!r}")
    notes: list[tuple[str, str]] = []
    for key in ("images", "categories"):
        if not lists[key]:
            raise CocoError(f"{source}: the data set is empty: no {key}; check the file or the tool that wrote it")
        lists[key] = _once(lists[key], key, notes)
    images = IdTable([image.get("id") for image in lists["images"]], f"{source}: images")
    categories = IdTable([category.get("id") for category in lists["categories"]], f"{source}: categories")
    for category in lists["categories"]:
        _require_name(category, source)
    packer = Packer() if packer is None else packer
    return lists | {
        "images": _with_ids(lists["images"], images),
        "categories": _with_ids(lists["categories"], categories),
        "annotations": packer.annotations(lists["annotations"], images, categories, f"{source}: annotations"),
        "written_image_ids": images.written,
        "written_category_ids": categories.written,
        "notes": notes,
        "annotated": "annotations" in content,
    }


def categories(content: dict[str, Any], problems: Problems) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids in rising order, and their names. A shared name gets the id appended, so that names are unique."""
    entries = sorted(content["categories"], key=lambda category: category["id"])
    counts = Counter(str(category["name"]) for category in entries)
    taken = {name for name, count in counts.items() if count == 1}
    names = []
    for category in entries:
        name = str(category["name"])
        if counts[name] > 1:
            name = f"{name} ({category['id']})"
            while name in taken:  # another category is called so
                name = f"{name} ({category['id']})"
            taken.add(name)
            problems.add("category name used more than once, its id was appended", name)
        names.append(name)
    return tuple(category["id"] for category in entries), tuple(names)


def _once(entries: list[dict[str, Any]], key: str, notes: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The entries without those that are equal to an earlier one, as merged files have them."""
    first: dict[Any, dict[str, Any]] = {}
    kept = []
    for entry in entries:
        given = key_of(entry.get("id"))
        if first.setdefault(given, entry) is not entry and first[given] == entry:
            notes.append((f"entry of {key} that occurs more than once, read once", f"id {shown(given)}"))
        else:
            kept.append(entry)
    return kept if len(kept) < len(entries) else entries


def _with_ids(entries: Sequence[dict[str, Any]], table: IdTable) -> Sequence[dict[str, Any]]:
    """The entries with the table's ids."""
    pairs = zip(entries, table.ids.tolist(), strict=True)
    return [
        entry if type(entry["id"]) is int and entry["id"] == given else entry | {"id": given} for entry, given in pairs
    ]


def _require_name(category: dict[str, Any], source: str) -> None:
    name = category.get("name")
    if not (isinstance(name, str) and name) and not is_finite(name):
        raise CocoError(f"{source}: category {shown(category['id'])} has no name; expected a text under 'name'")
