"""Reads annotation files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .annotations import Packed, Packer
from .entries import check_image_entry, require_ids
from .values import CocoError, read_json


def read_coco_json(path: Path) -> dict[str, Any]:
    """The parsed content of an annotation file, of which "annotations" are Annotations.

    Required: `images`, `annotations` and `categories` are lists of objects; images have distinct integer ids, positive
    sizes and a file name that stays inside the image folder; category and annotation ids are distinct. Raises CocoError
    if the file's structure is wrong.
    """
    packer = Packer()
    content = read_json(path, "annotations", packer.pack)
    if not isinstance(content, dict):
        raise CocoError(f"{path}: not COCO annotations; expected an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        kinds = dict | Packed if key == "annotations" else dict
        if not isinstance(entries, list) or not all(isinstance(entry, kinds) for entry in entries):
            raise CocoError(f"{path}: not COCO annotations; expected a list of objects under {key!r}")
    for key in ("images", "categories"):
        if not content[key]:
            raise CocoError(f"{path}: the data set is empty: no {key}; check the file or the tool that wrote it")
        require_ids(content[key], f"{path}: {key}")
    for image in content["images"]:
        check_image_entry(image, path)
    for category in content["categories"]:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise CocoError(f"{path}: category {category['id']} has no name; expected a text under 'name'")
    content["annotations"] = packer.annotations(content["annotations"])
    content["annotations"].require_distinct_ids(f"{path}: annotations")
    return content
