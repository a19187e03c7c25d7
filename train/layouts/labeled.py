"""What every layout is read into: images with their objects, and the COCO content that this gives.

Boxes are xyxy in pixels of the upright image, continuous, as everywhere in the toolkit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from runtime.bounds import CONTROL
from runtime.coco import Problems
from runtime.coco.format import doubt_of_boxes
from runtime.errors import UserError
from runtime.images.headers import ImageError
from runtime.images.size import image_size

SLACK = 1.0  # px that a box may reach beyond its image without a word: what layouts round away
DIGITS = 4  # decimals of a written coordinate, in px

# What folders, lists and entries of a split are called.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

Box = tuple[float, float, float, float]


class LayoutError(UserError):
    """A data set that is not laid out as its name says."""


class LabeledObject(NamedTuple):
    """An object of an image."""

    category_id: int
    box: Box  # xyxy px
    ignore: bool = False  # a region that neither training nor scoring counts


class LabeledImage(NamedTuple):
    """An image file and its objects."""

    path: Path
    size_hw: tuple[int, int]
    objects: tuple[LabeledObject, ...]


@dataclass(frozen=True)
class LabeledSet:
    """One split of a data set."""

    source: str  # as `parse_source` takes it
    categories: Mapping[int, str]  # name by category id
    images: tuple[LabeledImage, ...]
    problems: tuple[str, ...]  # what was left out or changed, a line per kind

    @property
    def root(self) -> Path:
        """The innermost folder that holds all images; file names in COCO's content are relative to it."""
        try:
            return Path(os.path.commonpath([image.path.parent for image in self.images]))
        except ValueError as error:  # two drives
            raise LayoutError(f"{self.source}: the images lie on different drives; move them to one") from error

    @property
    def object_count(self) -> int:
        """The number of objects, regions to ignore aside."""
        return sum(not found.ignore for image in self.images for found in image.objects)


def as_coco(labeled: LabeledSet, root: Path | None = None) -> dict[str, Any]:
    """The content of a COCO annotation file. Ids count from 1 in the set's order.

    File names are relative to `root`, which must hold all images; by default the set's own root.
    """
    root = labeled.root if root is None else root
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(labeled.images, start=1):
        height, width = image.size_hw
        name = image.path.relative_to(root).as_posix()
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for found in image.objects:
            x1, y1, x2, y2 = found.box
            bbox = [round(value, DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": found.category_id, "bbox": bbox}
            entry |= {"area": round(bbox[2] * bbox[3], DIGITS), "iscrowd": 0}
            annotations.append(entry | ({"ignore": 1} if found.ignore else {}))
    categories = [{"id": number, "name": name} for number, name in sorted(labeled.categories.items())]
    return {
        "info": {"description": f"read from {labeled.source}"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def with_categories(labeled: LabeledSet, categories: Mapping[int, str]) -> LabeledSet:
    """The set with the ids that `categories` gives to its names; names that `categories` lacks get ids behind."""
    by_name = {name: number for number, name in categories.items()}
    new = [name for name in labeled.categories.values() if name not in by_name]
    by_name |= {name: number for number, name in enumerate(new, start=max(categories, default=0) + 1)}
    ids = {old: by_name[name] for old, name in labeled.categories.items()}
    images = tuple(
        image._replace(objects=tuple(o._replace(category_id=ids[o.category_id]) for o in image.objects))
        for image in labeled.images
    )
    return replace(labeled, categories={number: name for name, number in by_name.items()}, images=images)


def numbered(names: Sequence[str]) -> dict[int, str]:
    """Category ids from 1, in the order of the names."""
    return dict(enumerate(names, start=1))


class Collector:
    """Collects the images of a set; what cannot be used is left out and counted in `problems`."""

    def __init__(self, base: Path) -> None:
        self.base = base  # messages name files relative to it
        self.problems = Problems()
        self._images: dict[Path, LabeledImage] = {}

    def name(self, path: Path) -> str:
        """The path as messages have it: relative to the data set where it lies inside."""
        return os.fspath(path.relative_to(self.base)) if path.is_relative_to(self.base) else os.fspath(path)

    def size_of(self, path: Path) -> tuple[int, int] | None:
        """Height and width of an image file; None, and a problem, where its header cannot be read."""
        try:
            return image_size(path)
        except ImageError as error:
            reason = str(error).removeprefix(f"{path}: ").partition(";")[0]
            self.problems.add("image that cannot be read, left out", f"{self.name(path)} ({reason})")
            return None

    def box(self, corners: Sequence[float], size_hw: tuple[int, int], name: str) -> Box | None:
        """The part of a box (xyxy px) inside its image; None, and a problem that names it, where there is none."""
        if not all(map(math.isfinite, corners)):
            self.problems.add("box that is not finite, dropped", name)
            return None
        (x1, y1, x2, y2), (height, width) = corners, size_hw
        if x2 <= x1 or y2 <= y1:
            self.problems.add("box of zero or negative size, dropped", name)
            return None
        clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        # As written: what rounds to nothing would be refused when the file is read.
        if round(clipped[2] - clipped[0], DIGITS) <= 0 or round(clipped[3] - clipped[1], DIGITS) <= 0:
            outside = x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height
            self.problems.add(f"box {'outside its image' if outside else 'without an area'}, dropped", name)
            return None
        if max(abs(a - b) for a, b in zip(clipped, corners, strict=True)) > SLACK:
            self.problems.add("box that reaches beyond its image, clipped", name)
        return clipped

    def add(self, path: Path, size_hw: tuple[int, int], objects: Sequence[LabeledObject]) -> None:
        """Add an image. Objects of an image that is there already are added to it, and a problem says so."""
        before = self._images.get(path)
        if before is not None:
            self.problems.add("image listed more than once, taken once with all its objects", self.name(path))
            objects = (*before.objects, *objects)
        self._images[path] = LabeledImage(path, size_hw, tuple(objects))

    def has(self, path: Path) -> bool:
        """Whether an image was added."""
        return path in self._images

    def _doubt(self) -> str | None:
        """See `doubt_of_boxes`."""
        images = self._images.values()
        corners = np.array([found.box for image in images for found in image.objects], np.float64).reshape(-1, 4)
        sizes_hw = np.array([image.size_hw for image in images for _ in image.objects], np.float64).reshape(-1, 2)
        return doubt_of_boxes(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), sizes_hw)

    def finish(self, source: str, categories: Mapping[int, str]) -> LabeledSet:
        """The set. Raises LayoutError where no image is left."""
        outside = [path for path in self._images if not path.is_relative_to(self.base)]
        for path in outside:
            self.problems.add(f"image outside the data set's folder {self.base}, read as it is listed", str(path))
        if (doubt := self._doubt()) is not None:
            self.problems.add("kind of boxes that is doubtful", doubt)
        lines = tuple(_on_one_line(line) for line in self.problems.lines())
        if not self._images:
            raise LayoutError(f"{source}: no image is left" + (f" ({'; '.join(lines)})" if lines else ""))
        return LabeledSet(source, categories, tuple(self._images.values()), lines)


def _on_one_line(text: str) -> str:
    """A text whose line breaks and other control characters, from names of files, are written out."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
