"""Writes a COCO data set in other layouts, slowly and by the layouts' own definitions: what the readers are held to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Content = dict[str, Any]


def objects_of(content: Content, image: dict[str, Any]) -> list[tuple[str, float, float, float, float]]:
    """Class name, x, y, width and height of an image's objects."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [
        (names[entry["category_id"]], *map(float, entry["bbox"]))
        for entry in content["annotations"]
        if entry["image_id"] == image["id"]
    ]


def write_yolo(content: Content, images: Path, out: Path, split: str = "train") -> str:
    """Six decimals of the image's sides; an image without objects has an empty file. Returns the source's name."""
    names = [category["name"] for category in content["categories"]]
    for image in content["images"]:
        _copy(images, out / "images" / split, image)
        lines = [
            f"{names.index(name)} {(x + w / 2) / image['width']:.6f} {(y + h / 2) / image['height']:.6f} "
            f"{w / image['width']:.6f} {h / image['height']:.6f}"
            for name, x, y, w, h in objects_of(content, image)
        ]
        labels = (out / "labels" / split / image["file_name"]).with_suffix(".txt")
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("\n".join(lines))
    listed = "\n".join(f"  {number}: {json.dumps(name)}" for number, name in enumerate(names))
    (out / "data.yaml").write_text(f"path: {out}\ntrain: images/train\nval: images/val\nnames:\n{listed}\n")
    return f"yolo:{out / 'data.yaml'}"


def write_voc(content: Content, images: Path, out: Path, split: str = "train") -> str:
    """Corners that count from 1 and belong to the box, with decimals where the boxes have them."""
    lists = out / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    stems = []
    for image in content["images"]:
        _copy(images, out / "JPEGImages", image)
        objects = "".join(
            f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for name, x, y, w, h in objects_of(content, image)
        )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        xml = (out / "Annotations" / image["file_name"]).with_suffix(".xml")
        xml.parent.mkdir(parents=True, exist_ok=True)
        text = f"<annotation><filename>{escape(image['file_name'])}</filename>{size}{objects}</annotation>"
        xml.write_text(text, encoding="utf-8")
        stems.append(Path(image["file_name"]).with_suffix("").as_posix())
    (lists / f"{split}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
    return f"voc:{out}"


def write_createml(content: Content, images: Path, out: Path, split: str = "train") -> str:
    """Centres and sizes in pixels, in one file beside the images."""
    entries = []
    for image in content["images"]:
        _copy(images, out / split, image)
        boxes = [
            {"label": name, "coordinates": {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h}}
            for name, x, y, w, h in objects_of(content, image)
        ]
        entries.append({"image": image["file_name"], "annotations": boxes})
    path = out / split / "_annotations.createml.json"
    path.write_text(json.dumps(entries))
    return f"createml:{path}"


WRITERS: dict[str, Callable[..., str]] = {"yolo": write_yolo, "voc": write_voc, "createml": write_createml}


def _copy(images: Path, to: Path, image: dict[str, Any]) -> None:
    target = to / image["file_name"]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(images / image["file_name"], target)
