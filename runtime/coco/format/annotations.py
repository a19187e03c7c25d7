"""The annotations of a file. They are packed into columns while the file is parsed: 100 bytes each, not 1000.

A annotations that have integer ids of an image and a category, and a box of four finite numbers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .entries import require_distinct
from .values import LARGEST, Problems, is_finite, is_number

_NUMBERS = {int, float}
_MOST = 2**63  # absolute values of ids stay below
_ABSENT = object()


class Packed(int):
    """Stands in a parsed file for an annotation that a `Packer` holds: its row there."""

    __slots__ = ()


class Packer:
    """Packs annotations one at a time; `pack` is an `object_hook` of the JSON parser."""

    def __init__(self) -> None:
        self.ids, self.image_ids, self.category_ids = array("q"), array("q"), array("q")
        self.boxes, self.areas, self.crowd = array("d"), array("d"), array("b")
        self.odd_ids: dict[int, Any] = {}  # by row, where the id is not an integer; absent: the annotation has none

    def pack(self, entry: dict[str, Any]) -> dict[str, Any] | Packed:
        """The row that an annotation got. Any other object, and an annotation that cannot be used, without outline."""
        if "file_name" not in entry and _is_packable(entry):  # an image may have the rest as well
            return self._add(entry)
        entry.pop("segmentation", None)  # nothing reads the outline, which takes most of a large file's memory
        return entry

    def _add(self, entry: dict[str, Any]) -> Packed:
        row, given = len(self.ids), entry.get("id", _ABSENT)
        if type(given) is not int or not -_MOST < given < _MOST:
            if given is not _ABSENT:
                self.odd_ids[row] = given
            given = -_MOST
        area = entry.get("area")
        self.ids.append(given)
        self.image_ids.append(entry["image_id"])
        self.category_ids.append(entry["category_id"])
        self.boxes.extend(entry["bbox"])
        self.areas.append(area if is_finite(area) else np.nan)
        self.crowd.append(bool(entry.get("iscrowd", 0)))
        return Packed(row)

    def annotations(self, entries: Sequence[dict[str, Any] | Packed]) -> Annotations:
        """The annotations of a file's list, whose entries may be packed; rows of other objects are left out."""
        numbers, rows, others = array("q"), array("q"), list[tuple[int, dict[str, Any]]]()
        for number, entry in enumerate(entries):
            if isinstance(entry, dict) and not _is_packable(entry):
                others.append((number, entry))
            else:
                numbers.append(number)
                rows.append(self._add(entry) if isinstance(entry, dict) else entry)
        return Annotations(
            ids=np.array(self.ids, np.int64)[rows],
            odd_ids={place: self.odd_ids[row] for place, row in enumerate(rows) if row in self.odd_ids},
            image_ids=np.array(self.image_ids, np.int64)[rows],
            category_ids=np.array(self.category_ids, np.int64)[rows],
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4)[rows],
            areas=np.array(self.areas, np.float64)[rows],
            crowd=np.array(self.crowd, bool)[rows],
            numbers=np.array(numbers, np.int64),
            others=tuple(others),
        )


def _is_packable(entry: dict[str, Any]) -> bool:
    """Whether an object is an annotation with usable numbers."""
    box, image_id, category_id = entry.get("bbox"), entry.get("image_id"), entry.get("category_id")
    return (
        type(image_id) is int
        and type(category_id) is int
        and -_MOST < image_id < _MOST
        and -_MOST < category_id < _MOST
        and type(box) is list
        and len(box) == 4
        and {*map(type, box)} <= _NUMBERS
        and -LARGEST < box[0] < LARGEST
        and -LARGEST < box[1] < LARGEST
        and -LARGEST < box[2] < LARGEST
        and -LARGEST < box[3] < LARGEST
    )


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations in the file's order."""

    ids: np.ndarray  # int64 [A]; −2⁶³: none, or one of `odd_ids`
    odd_ids: dict[int, Any]  # by row: ids that are not integers
    image_ids: np.ndarray  # int64 [A]
    category_ids: np.ndarray  # int64 [A]
    boxes: np.ndarray  # float64 [A, 4] x, y, width, height as annotated
    areas: np.ndarray  # float64 [A] px² as annotated; NaN where there is no finite number
    crowd: np.ndarray  # bool [A]
    numbers: np.ndarray  # int64 [A] places in the file's list
    others: tuple[tuple[int, dict[str, Any]], ...]  # places and entries of what cannot be used

    def id_of(self, row: int) -> Any:
        """The id as annotated; a private object where there is none."""
        return self.odd_ids.get(row, _ABSENT) if self.ids[row] == -_MOST else int(self.ids[row])

    def require_distinct_ids(self, where: str) -> None:
        """Raise CocoError, whose text begins with `where`, if two annotations have the same id."""
        if self.odd_ids or self.others or len(np.unique(self.ids)) < len(self.ids):
            ids = {int(number): self.id_of(row) for row, number in enumerate(self.numbers)}
            ids |= {number: entry.get("id", _ABSENT) for number, entry in self.others}
            require_distinct((ids[number] for number in sorted(ids) if ids[number] is not _ABSENT), where)

    def usable(self, image_ids: np.ndarray, category_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which annotations can be used with these images and categories, bool [A]."""
        has_size = (self.boxes[:, 2:] > 0).all(axis=1)
        return has_size & np.isin(self.image_ids, image_ids) & np.isin(self.category_ids, category_ids)

    def name_problems(
        self, image_ids: np.ndarray, category_ids: Sequence[int], is_outside: np.ndarray, problems: Problems
    ) -> None:
        """Add what cannot be used to `problems`, in the file's order; `is_outside` [A]: boxes outside their images."""
        images, known = set(image_ids.tolist()), set(category_ids)
        found = [(number, _problem(entry, images, known), entry.get("id", _ABSENT)) for number, entry in self.others]
        for row in np.flatnonzero(is_outside | ~self.usable(image_ids, category_ids)).tolist():
            if int(self.image_ids[row]) not in images:
                problem = "unknown image"
            elif int(self.category_ids[row]) not in known:
                problem = "unknown category"
            else:
                problem = "box outside the image" if is_outside[row] else "box of zero or negative size"
            found.append((int(self.numbers[row]), problem, self.id_of(row)))
        for number, problem, given in sorted(found, key=lambda one: one[0]):
            problems.add(problem, f"annotation {f'number {number + 1}' if given is _ABSENT else given}")


def as_annotations(entries: Annotations | Iterable[dict[str, Any]]) -> Annotations:
    """The annotations of a parsed file, where its entries are not packed yet."""
    if isinstance(entries, Annotations):
        return entries
    return Packer().annotations(list(entries))


def _problem(entry: dict[str, Any], image_ids: set[int], category_ids: set[int]) -> str:
    """Why an annotation that could not be packed cannot be used."""
    for name, known in (("image", image_ids), ("category", category_ids)):
        value = entry.get(f"{name}_id")
        if type(value) is not int or value not in known:
            return f"unknown {name}"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        return "bbox that is not four numbers"
    return "box that is not finite"
