"""Ids in results files: those of the data set that the results are of, in whichever form a tool wrote them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from .dataset import CocoDataset
from .format import CocoError, IdTable, Problems, shown
from .format.ids import MOST, whole_number
from .results import UNKNOWN_CATEGORY, Results, all_unknown, take

IDS = ("image_id", "category_id")
EXPECTED = "expected {image_id, category_id, bbox [x, y, width, height], score}"


def with_ids(
    images: Sequence[Any],
    categories: Sequence[Any],
    file_names: Sequence[Any],
    results: Results,
    dataset: CocoDataset | None,
    source: object,
) -> Results:
    """Results [n] with the data set's numbers for their images and categories, which are given as written.

    An image is meant by its id or, where some result has no image's id, by its file name (Ultralytics writes it without
    the suffix, and as a number where it is one); `file_names` has what the results call it, None where they do not. A
    category is meant by its id or its name. Ids are found by value: 3.0 and "3" are 3. What was found otherwise than by
    id is named in `problems`, and so are results of categories that the data set lacks, which are left out.

    Without a data set, ids have to be whole numbers. Raises CocoError, whose text begins with `source`, for images that
    the data set lacks, and where it lacks all categories.
    """
    if dataset is None:
        whole = [_whole(column, name, source) for column, name in zip((images, categories), IDS, strict=True)]
        return replace(results, image_ids=whole[0], category_ids=whole[1])
    problems, notes = Problems(), tuple[str, ...]()
    found_images, by_name = _find_images(images, file_names, dataset, source)
    if by_name:
        notes = (f"{source}: images are found by their file names, since not all image ids are the annotations'",)
    found = _each(categories, _finder_of_categories(dataset))
    for value, number in zip(categories, found, strict=True):
        if number is None:
            problems.add(UNKNOWN_CATEGORY, f"category {shown(value)}")
    if found and all(number is None for number in found):
        raise all_unknown(len(found), categories, _written(dataset.written_category_ids, dataset.category_ids))
    kept = np.array([number is not None for number in found], bool)
    return replace(
        take(results, kept),
        image_ids=np.array(found_images, np.int64)[kept],
        category_ids=np.array([number for number in found if number is not None], np.int64),
        problems=(*notes, *problems.lines()),
    )


def _find_images(
    images: Sequence[Any], file_names: Sequence[Any], dataset: CocoDataset, source: object
) -> tuple[list[int | None], bool]:
    """The numbers of images, none of which is None, and whether they were found by file name. Raises CocoError."""
    written = _written(dataset.written_image_ids, dataset.image_ids.tolist())
    by_id = _each(images, IdTable(written, f"{dataset.json_path}: images").find)
    named = [image if name is None else name for image, name in zip(images, file_names, strict=True)]
    if None in by_id:
        by_name = _each(named, _finder_of_names(dataset))
        if None in by_name:
            raise _unknown_images([number is None for number in by_id], images, source)
        return by_name, True
    if any(isinstance(name, str) for name in named):
        _require_one_meaning(images, by_id, _each(named, _finder_of_names(dataset)), set(written), source)
    return by_id, False


def _require_one_meaning(
    images: Sequence[Any],
    by_id: Sequence[int | None],
    by_name: Sequence[int | None],
    written: Container[Any],
    source: object,
) -> None:
    """Raise CocoError where a text means one image by its value and another by its file name: "0003" of 0003.jpg."""
    for place, (image, one, other) in enumerate(zip(images, by_id, by_name, strict=True)):
        if isinstance(image, str) and image not in written and other is not None and other != one:
            raise CocoError(
                f"{source}: result {place + 1} has image_id {shown(image)}, the id of one image as a number and the "
                "file name of another; write the ids that the annotations have"
            )


def has_plain_ids(dataset: CocoDataset, image_ids: np.ndarray) -> bool:
    """Whether the data set's ids are integers, and the images are all its own."""
    is_plain = dataset.written_image_ids is None and dataset.written_category_ids is None
    return is_plain and bool(np.isin(image_ids, dataset.image_ids).all())


def _whole(column: Sequence[Any], name: str, source: object) -> np.ndarray:
    """Ids of results as integers, without a data set. Raises CocoError for ids that are no whole numbers."""
    numbers = [whole_number(value) for value in column]
    for place, (number, value) in enumerate(zip(numbers, column, strict=True)):
        if number is None or not -MOST < number < MOST:
            raise CocoError(
                f"{source}: result {place + 1} of {len(column)} has no integer {name} ({shown(value)}); {EXPECTED}"
            )
    return np.array(numbers, np.int64)


def _unknown_images(is_unknown: Sequence[bool], image_ids: Sequence[Any], source: object) -> CocoError:
    """The error for results [n] of images that the annotations lack."""
    places = np.flatnonzero(is_unknown)
    first = int(places[0])
    return CocoError(
        f"{source}: {len(places)} of {len(image_ids)} results are of images that the annotations lack, the first: "
        f"result {first + 1} has image_id {shown(image_ids[first])}; give the annotations that the results were made on"
    )


def _written(written: Sequence[Any] | None, ids: Sequence[int]) -> Sequence[Any]:
    return ids if written is None else written


def _each(values: Sequence[Any], find: Callable[[Any], int | None]) -> list[int | None]:
    """What `find` gives for each value; asked once for values that are alike."""
    known: dict[Any, int | None] = {}
    found = []
    for value in values:
        key = (type(value), value) if isinstance(value, int | float | str) else None
        if key not in known:
            known[key] = None if key is None else find(value)
        found.append(known[key])
    return found


def _finder_of_categories(dataset: CocoDataset) -> Callable[[Any], int | None]:
    ids = dataset.category_ids
    table = IdTable(_written(dataset.written_category_ids, ids), f"{dataset.json_path}: categories")
    by_name = dict(zip(dataset.classes, ids, strict=True))

    def find(value: Any) -> int | None:
        number = table.find(value)
        return by_name.get(value) if number is None and isinstance(value, str) else number

    return find


def _finder_of_names(dataset: CocoDataset) -> Callable[[Any], int | None]:
    """Finds images by file name: with its folders or without, with its suffix or without."""
    pairs = list(zip(dataset.file_names, dataset.image_ids.tolist(), strict=True))
    by_name = _unambiguous((name, number) for text, number in pairs for name in _names_of(text))
    by_number = _unambiguous((whole_number(PurePosixPath(text).stem), number) for text, number in pairs)

    def find(value: Any) -> int | None:
        if isinstance(value, str):
            return by_name.get(value, by_name.get(PureWindowsPath(value).name))  # which reads both separators
        number = whole_number(value)
        return None if number is None else by_number.get(number)

    return find


def _names_of(file_name: str) -> set[str]:
    path = PurePosixPath(file_name)
    return {file_name, path.name, path.stem, str(path.with_suffix("")) if path.name else file_name}


def _unambiguous(pairs: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    """The pairs as a dictionary, without keys that occur more than once."""
    listed = list(pairs)
    counts = Counter(key for key, _ in listed)
    return {key: number for key, number in listed if counts[key] == 1}
