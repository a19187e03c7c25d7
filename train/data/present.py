"""Which images of a data set are there, and the data set without the others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from runtime.coco import CocoDataset, FileNames

FEWEST = 8  # images of a folder that is listed; fewer are looked up one by one
ENTRIES = 20  # of a folder that are listed, for each of its images: a few images may lie among millions of others


def are_there(dataset: CocoDataset, indices: np.ndarray) -> np.ndarray:
    """Whether the file of each image of `indices` [n] is there, bool [n].

    A folder is listed, which on a network drive takes a fraction of the time of looking each file up. A name that isn't
    in the list is looked up all the same: a file system may find it in another spelling (case, Unicode's forms).
    """
    folders: dict[str, dict[str, list[int]]] = {}
    for place, index in enumerate(indices):
        folder, name = os.path.split(os.path.join(dataset.root, dataset.file_names[index]))
        folders.setdefault(folder, {}).setdefault(name, []).append(place)
    there = np.zeros(len(indices), bool)
    for folder, places in folders.items():
        listed = set(_listed(folder, places)) if len(places) >= FEWEST else set()
        for name, where in places.items():
            there[where] = name in listed or os.path.isfile(os.path.join(folder, name))
    return there


def _listed(folder: str, names: dict[str, list[int]]) -> Iterator[str]:
    """Those of the names that the folder lists as files; all that are there, unless the folder has very many others."""
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(ENTRIES * len(names)), entries, strict=False):
                if entry.name in names and entry.is_file():
                    yield entry.name
    except OSError:  # it can't be listed, though its files may be read
        return


def only(dataset: CocoDataset, kept: np.ndarray) -> CocoDataset:
    """The data set with the images that are `kept`, bool [I], and their annotations."""
    rows = np.repeat(kept, np.diff(dataset.offsets))
    written = dataset.written_image_ids
    return dataclasses.replace(
        dataset,
        image_ids=dataset.image_ids[kept],
        file_names=FileNames(dataset.file_names[int(index)] for index in np.flatnonzero(kept)),
        sizes_hw=dataset.sizes_hw[kept],
        boxes=dataset.boxes[rows],
        labels=dataset.labels[rows],
        crowd=dataset.crowd[rows],
        ignore=dataset.ignore[rows],
        offsets=np.concatenate([[0], np.cumsum(np.diff(dataset.offsets)[kept])]).astype(np.int64),
        written_image_ids=None if written is None else tuple(written[int(i)] for i in np.flatnonzero(kept)),
    )
