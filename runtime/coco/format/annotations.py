"""The annotations of a file as columns, and what is wrong with them.

A annotations that have a box of four finite numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ids import NO_ID
from .values import Problems, shown

LARGEST_AREA = 1e10  # px²; pycocotools counts no object above, and none below 0
UNKNOWN_IMAGE, UNKNOWN_CATEGORY = "unknown image", "unknown category"  # kinds of problems
ABSENT = object()  # stands for the id of an annotation that has none


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations in the file's order."""

    ids: np.ndarray  # int64 [A]; NO_ID: none, or one of `odd_ids`
    odd_ids: dict[int, Any]  # by row: ids that are not integers
    image_ids: np.ndarray  # int64 [A]; NO_ID: of no image of the file
    category_ids: np.ndarray  # int64 [A]; NO_ID: of no category of the file
    boxes: np.ndarray  # float64 [A, 4] x, y, width, height as annotated
    areas: np.ndarray  # float64 [A] px² as annotated; NaN where there is no finite number
    odd_areas: np.ndarray  # bool [A]: an area is annotated, but it is no finite number
    crowd: np.ndarray  # bool [A] iscrowd
    ignore: np.ndarray  # bool [A] the key "ignore" of VisDrone, CrowdHuman and others: a region, not an object
    numbers: np.ndarray  # int64 [A] places in the file's list
    others: tuple[tuple[int, str, Any], ...]  # places of what cannot be used, why, and the ids
    notes: tuple[tuple[str, Any], ...] = ()  # kinds of problems that were mended while reading, and ids
    unknown_images: tuple[Any, ...] = ()  # distinct ids as written that no image of the file has
    unknown_categories: tuple[Any, ...] = ()  # and that no category has

    def id_of(self, row: int) -> Any:
        """The id as annotated; ABSENT where there is none."""
        return self.odd_ids.get(row, ABSENT) if self.ids[row] == NO_ID else int(self.ids[row])

    def select(self, rows: np.ndarray) -> Annotations:
        """The annotations at `rows`, rising indices."""
        columns = ("ids", "image_ids", "category_ids", "boxes", "areas", "odd_areas", "crowd", "ignore", "numbers")
        odd = {place: self.odd_ids[row] for place, row in enumerate(rows.tolist()) if row in self.odd_ids}
        return dataclasses.replace(self, odd_ids=odd, **{name: getattr(self, name)[rows] for name in columns})

    def once(self) -> Annotations:
        """Without repetitions: entries with the id, image, category and box of an earlier one.

        Entries that share only the id are kept, since each says by itself what it is. Both are named in `notes`.
        """
        has_id = self.ids != NO_ID
        if not self.odd_ids and len(np.unique(self.ids[has_id])) == np.count_nonzero(has_id):
            return self
        first: dict[str, set[tuple[Any, ...]]] = {}
        kept, notes = [], list[tuple[str, Any]]()
        for row in range(len(self.ids)):
            given = self.id_of(row)
            content = (int(self.image_ids[row]), int(self.category_ids[row]), *self.boxes[row].tolist())
            earlier = set() if given is ABSENT else first.setdefault(repr(given), set())
            if content in earlier:
                notes.append(("annotation that occurs more than once, read once", given))
                continue
            if earlier:
                notes.append(("id of more than one annotation, all of them are read", given))
            earlier.add(content)
            kept.append(row)
        if not notes:
            return self
        return dataclasses.replace(self.select(np.array(kept, np.int64)), notes=tuple(notes))

    def known(self, image_ids: np.ndarray, category_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which annotations are of these images and categories, bool [A]."""
        return np.isin(self.image_ids, image_ids) & np.isin(self.category_ids, category_ids)

    def usable(self, image_ids: np.ndarray, category_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which annotations can be used with these images and categories, bool [A]."""
        return (self.boxes[:, 2:] > 0).all(axis=1) & self.known(image_ids, category_ids)

    def name_problems(
        self, image_ids: np.ndarray, category_ids: Sequence[int], is_outside: np.ndarray, problems: Problems
    ) -> None:
        """Add what cannot be used to `problems`, in the file's order, and what is read otherwise than written.

        `is_outside` [A] says which boxes are outside their images.
        """
        found = list(self.others)
        images, known = set(image_ids.tolist()), set(category_ids)
        usable = self.usable(image_ids, category_ids) & ~is_outside
        for row in np.flatnonzero(~usable).tolist():
            if int(self.image_ids[row]) not in images:
                problem = UNKNOWN_IMAGE
            elif int(self.category_ids[row]) not in known:
                problem = UNKNOWN_CATEGORY
            else:
                problem = "box outside the image" if is_outside[row] else "box of zero or negative size"
            found.append((int(self.numbers[row]), problem, self.id_of(row)))
        for row in np.flatnonzero(usable & self.ignore).tolist():
            found.append((int(self.numbers[row]), "ignore 1, a region to ignore and not an object", self.id_of(row)))
        for number, problem, given in sorted(found, key=lambda one: one[0]):
            problems.add(problem, f"annotation {f'number {number + 1}' if given is ABSENT else _named(given)}")
        for kind, given in self.notes:
            problems.add(kind, _named(given))
        known_rows = self.known(image_ids, category_ids)
        for kind, rows in (
            ("area that is no finite number, the box's was taken", self.odd_areas),
            ("area outside 0–1e10 px², whose object does not count in scoring, as for pycocotools",
             (self.areas < 0) | (self.areas > LARGEST_AREA)),
        ):  # fmt: skip
            for row in np.flatnonzero(known_rows & rows).tolist():
                given, number = self.id_of(row), int(self.numbers[row]) + 1
                problems.add(kind, f"annotation {f'number {number}' if given is ABSENT else _named(given)}")


def _named(given: Any) -> str:
    return given if isinstance(given, str) and len(given) <= 60 else shown(given)
