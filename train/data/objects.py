"""What a data set has to train on: its objects, and the images that count."""

from __future__ import annotations

import dataclasses

import numpy as np

from runtime.coco import CocoDataset, CocoError


def crowds_as_objects(dataset: CocoDataset, may_be_empty: bool = False) -> tuple[CocoDataset, tuple[str, ...]]:
    """The data set with the objects that training uses, and what has to be said about its crowds.

    In COCO a crowd is a region of many objects beside single ones, and training leaves it out. Where every annotation
    is a crowd, as CVAT writes masks, the flag can't mean that, and the crowds are objects. Raises CocoError as
    `images_to_train_on` where there is no object, unless the data set may be empty: here, and not when the images are
    chosen, the reasons have not been printed as warnings yet.
    """
    used, notes = _with_crowds(dataset)
    if not may_be_empty:
        _require_objects(used)
    return used, notes


def _with_crowds(dataset: CocoDataset) -> tuple[CocoDataset, tuple[str, ...]]:
    crowds = dataset.crowd & ~dataset.ignore
    count, total = int(crowds.sum()), len(crowds)
    if not count:
        return dataset, ()
    if not dataset.crowd.all():
        return dataset, (f"{count} of {total} annotations have iscrowd 1: crowds, which are no objects to train on",)
    line = f"all {count} annotations have iscrowd 1, as CVAT writes masks: they are trained on as objects"
    return dataclasses.replace(dataset, crowd=dataset.ignore), (line,)


def images_to_train_on(dataset: CocoDataset, keep_empty: bool) -> np.ndarray:
    """The indices of the images with at least one object, crowds aside; with `keep_empty` of all images.

    Raises CocoError, which names the reason, where the data set has no object at all, or none that is larger than a
    pixel because its coordinates are fractions of the images' sides.
    """
    _require_objects(dataset)
    is_object = ~dataset.crowd
    if dataset.boxes[is_object].max() <= 1.0:
        raise CocoError(
            f"{dataset.json_path}: every box lies within the first pixel of its image; the coordinates seem to be "
            "fractions of the image's sides, but COCO's are pixels: multiply them by width and height"
        )
    counts = np.diff(np.concatenate([[0], np.cumsum(is_object)])[dataset.offsets])
    return np.arange(len(dataset)) if keep_empty else np.flatnonzero(counts)


def _require_objects(dataset: CocoDataset) -> None:
    if dataset.crowd.all():
        raise CocoError(f"{dataset.json_path} has no object to train on: {_why_none(dataset)}")


def _why_none(dataset: CocoDataset) -> str:
    if dataset.problems:
        return "; ".join(dataset.problems)
    if len(dataset.boxes):
        return "all of its annotations have iscrowd 1"
    return "it has no annotations; give a file with boxes"
