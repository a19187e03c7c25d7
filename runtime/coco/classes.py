"""Which category of a data set each class of a model is: matched by name, since ids differ from file to file."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..manifest import Manifest
from .dataset import CocoDataset
from .format import CocoError

NAMED = 5  # classes that a line names; the others are only counted


@dataclass(frozen=True)
class ClassMatch:
    """A model's classes and the categories of a data set."""

    category_ids: tuple[int | None, ...]  # the data set's, by class of the model; None: it has no such category
    differences: tuple[str, ...]  # what the two do not have in common, a line per kind


def match_classes(
    ours: Mapping[int, str],
    theirs: Mapping[int, str],
    source: object,
    owner: str = "the model",
    written: Sequence[Any] | None = None,
) -> ClassMatch:
    """Match the classes of a model by name with the categories of a data set; both are names by id.

    Ids are compared only where several classes have one name. Names that differ in case alone are matched where there
    is one choice. `source` names the data set's file in messages, `owner` what has the classes, and `written` are the
    ids that the file has, by category, where they are not those of `theirs`. Raises CocoError where no class is
    matched.
    """
    shown = dict(zip(theirs, written or theirs, strict=True))
    found = {own: own for own, name in ours.items() if theirs.get(own) == name}
    for key in (str, _without_case):
        found |= _matched_by(key, ours, theirs, found)
    if not found:
        raise CocoError(
            f"{source}: no category there is a class of {owner} (classes: {_some(ours.values())}; categories: "
            f"{_some(theirs.values())}); give annotations of the classes that the model was trained on"
        )
    pairs = [(own, found[own]) for own in ours if own in found]
    kinds = (
        ("{} has other ids there, matched by name", "{} have other ids there, matched by name",
         [f"{ours[own]} {own} → {shown[their]}" for own, their in pairs if own != their]),
        ("{} is written otherwise there, matched without regard to case",
         "{} are written otherwise there, matched without regard to case",
         [f"{ours[own]} → {theirs[their]}" for own, their in pairs if ours[own] != theirs[their]]),
        (f"{{}} of {owner} is no category there, its detections do not count",
         f"{{}} of {owner} are no categories there, their detections do not count",
         [name for own, name in ours.items() if own not in found]),
        (f"{{}} there is unknown to {owner}, its objects count as missed",
         f"{{}} there are unknown to {owner}, their objects count as missed",
         [name for their, name in theirs.items() if their not in found.values()]),
    )  # fmt: skip
    lines = [
        f"{source}: {(one if len(names) == 1 else many).format(_count(names))}: {_some(names)}"
        for one, many, names in kinds
        if names
    ]
    return ClassMatch(tuple(found.get(own) for own in ours), tuple(lines))


def match_dataset(manifest: Manifest, dataset: CocoDataset) -> ClassMatch:
    """As `match_classes`, of a deployed model and a data set."""
    written = dataset.written_category_ids
    return match_classes(manifest.categories, dataset.categories, dataset.json_path, written=written)


def print_differences(manifest: Manifest, dataset: CocoDataset) -> None:
    """Print a warning for each kind of difference between a model's classes and a data set's. Raises CocoError."""
    for line in match_dataset(manifest, dataset).differences:
        print(f"warning: {line}", file=sys.stderr)


def _matched_by(
    key: Callable[[str], str], ours: Mapping[int, str], theirs: Mapping[int, str], found: Mapping[int, int]
) -> dict[int, int]:
    """Ids of both sides that are not in `found` yet and whose names have the same key, which no other name has."""
    left, right = _unique(key, ours), _unique(key, theirs)
    taken = set(found.values())
    pairs = ((own, right[value]) for value, own in left.items() if value in right)
    return {own: their for own, their in pairs if own not in found and their not in taken}


def _unique(key: Callable[[str], str], categories: Mapping[int, str]) -> dict[str, int]:
    """Ids by the key of their name, where no other name has that key."""
    keys = {category_id: key(name) for category_id, name in categories.items()}
    counts = Counter(keys.values())
    return {value: category_id for category_id, value in keys.items() if counts[value] == 1}


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _count(names: Collection[str]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names)} classes"


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:NAMED]) + (" …" if len(names) > NAMED else "")
