"""What the image files of a data set are like: which can't be read, and which are the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from runtime.coco import CocoDataset
from runtime.files import sha256_file
from runtime.images import ImageError
from runtime.images.size import image_size

HEAD = 1 << 16  # bytes whose hash is compared before whole files are
THREADS = min(16, 2 * (os.cpu_count() or 1))
Item = TypeVar("Item")
Result = TypeVar("Result")


class FileReport(NamedTuple):
    """The image files of a data set."""

    unreadable: tuple[str, ...]  # a message each, of headers that can't be read and of files that can't be decoded
    other_size: tuple[str, ...]  # a message each, of files of another size than annotated
    decoded: int  # how many files were decoded, of all whose headers were read
    images: int


def file_report(dataset: CocoDataset, decode: int) -> FileReport:
    """Read the header of every file, and decode `decode` of them, evenly spread (0: all)."""
    headers = _map(lambda index: _header(dataset, index), range(len(dataset)))
    unreadable = [text for kind, text in headers if kind == "unreadable"]
    good = np.array([index for index, (kind, _) in enumerate(headers) if kind == ""], np.int64)
    chosen = spread(good, decode or len(good))
    for text in _map(lambda index: _decoded(dataset, int(index)), chosen.tolist()):
        unreadable += [text] if text else []
    other = tuple(text for kind, text in headers if kind == "size")
    return FileReport(tuple(unreadable), other, len(chosen), len(dataset))


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """`count` of the indices, evenly spread; all where there are fewer."""
    if len(indices) <= count:
        return indices
    return indices[np.unique(np.linspace(0, len(indices) - 1, count).astype(np.int64))]


def identical_files(paths: Sequence[Path]) -> list[list[int]]:
    """Groups of indices of files with identical bytes, rising; files that can't be read are in none.

    Only files of the same length are opened, and only those whose beginnings are the same are read to their ends.
    """
    groups = [list(range(len(paths)))]
    for key in (_length, _head, _whole):
        divided: list[list[int]] = []
        for group, keys in _keys(groups, paths, key):
            by_key: dict[object, list[int]] = {}
            for index, found in zip(group, keys, strict=True):
                if found is not None:
                    by_key.setdefault(found, []).append(index)
            divided += [same for same in by_key.values() if len(same) > 1]
        groups = divided
    return sorted(groups)


def _keys(
    groups: list[list[int]], paths: Sequence[Path], key: Callable[[Path], object | None]
) -> Iterable[tuple[list[int], list[object | None]]]:
    """The keys of each group's files, computed by threads over all groups."""
    found = iter(_map(lambda index: key(paths[index]), [index for group in groups for index in group]))
    for group in groups:
        yield group, [next(found) for _ in group]


def _length(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return sha256(file.read(HEAD)).digest()
    except OSError:
        return None


def _whole(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None


def _header(dataset: CocoDataset, index: int) -> tuple[str, str]:
    """The kind of a file's problem ("": none) and its message."""
    path = dataset.path(index)
    try:
        height, width = image_size(path)
    except ImageError as error:
        return "unreadable", str(error)
    said_h, said_w = dataset.size_hw(index)
    if (height, width) != (said_h, said_w):
        return "size", f"{path}: the image is {width}×{height}, the annotations say {said_w}×{said_h}"
    return "", ""


def _decoded(dataset: CocoDataset, index: int) -> str:
    try:
        dataset.image(index)
    except ImageError as error:
        return str(error)
    return ""


def _map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))
