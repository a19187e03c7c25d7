"""Packs annotations into columns while a file is parsed: 100 bytes each, not 1000.

An annotation as COCO writes it is packed after a look at its types. Any other is first put into COCO's form where it
can mean one thing only: numbers written as texts, a box that only the mask has, ids that aren't integers, flags as
texts. What has no usable box is kept as it is, to be named.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from .annotations import ABSENT, UNKNOWN_CATEGORY, UNKNOWN_IMAGE, Annotations
from .ids import MOST, NO_ID, IdTable, key_of
from .masks import mask_box
from .values import LARGEST, CocoError, is_missing, is_number, number_of, shown

_NUMBERS = {int, float}
# What flags are written as; true and 1.0 are found as 1.
_FLAGS = {0: 0, 1: 1, None: 0, "0": 0, "false": 0, "0.0": 0, "1": 1, "true": 1, "1.0": 1}


class Packed(int):
    """Stands in a parsed file for an annotation that a `Packer` holds: its row there."""

    __slots__ = ()


class Packer:
    """Packs annotations one at a time; `pack` is an `object_hook` of the JSON parser."""

    def __init__(self) -> None:
        self._ids, self._image_ids, self._category_ids = array("q"), array("q"), array("q")
        self._boxes, self._areas = array("d"), array("d")
        self._crowd, self._ignore = array("b"), array("b")
        # By row, what the columns can't hold: ids that aren't integers of 64 bits, and flags that are none.
        self._odd_ids: dict[int, Any] = {}
        self._odd_image_ids: dict[int, Any] = {}
        self._odd_category_ids: dict[int, Any] = {}
        self._odd_flags: dict[int, tuple[str, Any]] = {}
        self._odd_areas: list[int] = []  # rows whose area is there, but no number

    def pack(self, entry: dict[str, Any]) -> dict[str, Any] | Packed:
        """The row that an annotation got. Any other object, and an annotation that cannot be used, without outline."""
        if "file_name" not in entry and "coco_url" not in entry:  # an image may have the rest as well
            packed = self._packed(entry)
            if packed is not None:
                return packed
        if entry.get("bbox"):  # else the outline may have to serve as box
            entry.pop("segmentation", None)  # it takes most of a large file's memory
        return entry

    def _packed(self, entry: dict[str, Any]) -> Packed | None:
        if _is_clean(entry):
            return self._add(entry)
        usual = _as_coco(entry)
        return None if usual is None else self._add_odd(usual)

    def _add(self, entry: dict[str, Any]) -> Packed:
        row, given, area = len(self._ids), entry.get("id"), entry.get("area")
        if type(given) is not int or not -MOST < given < MOST:
            if given is not None:
                self._odd_ids[row] = given
            given = NO_ID
        if type(area) not in _NUMBERS or not -LARGEST <= area <= LARGEST:  # type: ignore[operator]
            number = number_of(area)
            if number is None and not is_missing(area):
                self._odd_areas.append(row)
            area = number
        self._ids.append(given)
        self._image_ids.append(entry["image_id"])
        self._category_ids.append(entry["category_id"])
        self._boxes.extend(entry["bbox"])
        self._areas.append(np.nan if area is None else area)
        self._crowd.append(self._flag("iscrowd", entry["iscrowd"]) if "iscrowd" in entry else 0)
        self._ignore.append(self._flag("ignore", entry["ignore"]) if "ignore" in entry else 0)
        return Packed(row)

    def _add_odd(self, entry: dict[str, Any]) -> Packed:
        """As `_add`, of an annotation whose ids may be anything."""
        row = len(self._ids)
        for name, odd in (("image_id", self._odd_image_ids), ("category_id", self._odd_category_ids)):
            value = entry[name]
            if type(value) is float:
                entry[name] = value = key_of(value)  # an integer where it is whole: columns need less memory
            if type(value) is not int or not -MOST < value < MOST:
                odd[row], entry[name] = value, NO_ID
        return self._add(entry)

    def _flag(self, name: str, value: Any) -> int:
        try:
            return _FLAGS[value]
        except (KeyError, TypeError):
            flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else 0 if is_missing(value) else None
        if flag is None:
            self._odd_flags.setdefault(len(self._ids) - 1, (name, value))
        return flag or 0

    def annotations(
        self, entries: Sequence[dict[str, Any] | Packed], images: IdTable, categories: IdTable, where: str
    ) -> Annotations:
        """The annotations of a file's list, whose entries may be packed; rows of other objects are left out.

        Ids become those of the tables. Raises CocoError, whose text begins with `where`, for a flag that is none.
        """
        numbers, rows, others = array("q"), array("q"), list[tuple[int, str, Any]]()
        unpacked: list[dict[str, Any]] = []
        for number, entry in enumerate(entries):
            packed = self._packed(entry) if isinstance(entry, dict) else entry
            if packed is None:
                unpacked.append(entry)  # type: ignore[arg-type]
                given = entry.get("id")  # type: ignore[union-attr]
                others.append((number, _problem(entry, images, categories), ABSENT if given is None else given))  # type: ignore[arg-type]
            else:
                numbers.append(number)
                rows.append(packed)
        kept = np.array(rows, np.int64)
        self._require_flags(kept, where)
        image_ids, odd_images = np.array(self._image_ids, np.int64)[kept], _of_rows(self._odd_image_ids, kept)
        category_ids = np.array(self._category_ids, np.int64)[kept]
        odd_categories = _of_rows(self._odd_category_ids, kept)
        odd = [*odd_images.values(), *(entry.get("image_id") for entry in unpacked)]
        unknown_images = _unknown(image_ids, odd, images)
        odd = [*odd_categories.values(), *(entry.get("category_id") for entry in unpacked)]
        unknown_categories = _unknown(category_ids, odd, categories)
        found = Annotations(
            ids=np.array(self._ids, np.int64)[kept],
            odd_ids=_of_rows(self._odd_ids, kept),
            image_ids=_resolved(image_ids, odd_images, images),
            category_ids=_resolved(category_ids, odd_categories, categories),
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4)[kept],
            areas=np.array(self._areas, np.float64)[kept],
            odd_areas=np.isin(kept, self._odd_areas),
            crowd=np.array(self._crowd, bool)[kept],
            ignore=np.array(self._ignore, bool)[kept],
            numbers=np.array(numbers, np.int64),
            others=tuple(others),
            unknown_images=unknown_images,
            unknown_categories=unknown_categories,
        )
        return found.once()

    def _require_flags(self, rows: np.ndarray, where: str) -> None:
        odd = _of_rows(self._odd_flags, rows)
        if odd:
            place, (name, value) = next(iter(odd.items()))
            row = int(rows[place])
            given = self._odd_ids.get(row, self._ids[row])
            which = f"entry {place + 1}" if given == NO_ID else f"annotation {shown(given)}"
            raise CocoError(
                f"{where}: {which} has {name} {shown(value)}, expected 0 or 1 ({len(odd)} such annotations); correct "
                "the file or the tool that wrote it"
            )


def _is_clean(entry: dict[str, Any]) -> bool:
    """Whether an object is an annotation as COCO writes it."""
    box, image_id, category_id = entry.get("bbox"), entry.get("image_id"), entry.get("category_id")
    return (
        type(image_id) is int
        and type(category_id) is int
        and -MOST < image_id < MOST
        and -MOST < category_id < MOST
        and type(box) is list
        and len(box) == 4
        and {*map(type, box)} <= _NUMBERS
        and -LARGEST <= box[0] <= LARGEST
        and -LARGEST <= box[1] <= LARGEST
        and -LARGEST <= box[2] <= LARGEST
        and -LARGEST <= box[3] <= LARGEST
    )


def _as_coco(entry: dict[str, Any]) -> dict[str, Any] | None:
    """An annotation in COCO's form, its ids aside; None for an object that is none or has no usable box."""
    if "image_id" not in entry or "category_id" not in entry:
        return None
    box = entry.get("bbox")
    if not box and entry.get("segmentation"):
        try:
            box = mask_box(entry["segmentation"])
        except ValueError:
            return None
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    numbers = [number_of(value) for value in box]
    return None if None in numbers else {**entry, "bbox": numbers}


def _resolved(column: np.ndarray, odd: dict[int, Any], table: IdTable) -> np.ndarray:
    """A column of ids as the table numbers them; NO_ID where the table has none."""
    found = table.find_all(column)
    for place, value in odd.items():
        number = table.find(value)
        found[place] = NO_ID if number is None else number
    return found


def _unknown(column: np.ndarray, odd: Sequence[Any], table: IdTable) -> tuple[Any, ...]:
    """The distinct ids of a column and of `odd`, as written, that the table lacks; integers by size, then the rest."""
    values = np.unique(column[column != NO_ID])
    plain = values if table.numbered else values[~np.isin(values, table.ids)]
    given = [value for value in plain.tolist() if table.find(value) is None]
    rest = [value for value in odd if table.find(value) is None]
    return tuple({repr(value): value for value in [*given, *rest]}.values())


def _of_rows(odd: dict[int, Any], rows: np.ndarray) -> dict[int, Any]:
    """What is odd, by place in `rows` instead of by row, in the order of the places."""
    if not odd:
        return {}
    places = np.flatnonzero(np.isin(rows, list(odd)))
    return {place: odd[int(rows[place])] for place in places.tolist()}


def _problem(entry: dict[str, Any], images: IdTable, categories: IdTable) -> str:
    """Why an annotation that could not be packed cannot be used."""
    if images.find(entry.get("image_id")) is None:
        return UNKNOWN_IMAGE
    if categories.find(entry.get("category_id")) is None:
        return UNKNOWN_CATEGORY
    box = entry.get("bbox")
    if not box:
        return "neither a bbox nor a mask that can be read"
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return "bbox that is not four numbers"
    return "box that is not finite"
