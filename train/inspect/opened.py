"""Opens a data set of any layout as the index and the ground truth of a COCO file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from runtime.coco import CocoDataset, GroundTruth, load_coco_with_truth
from runtime.temporaries import scratch_folder

from ..data.objects import crowds_as_objects
from ..layouts import COCO, LayoutError, Source, as_coco, find_image_folder, read_source


class Opened(NamedTuple):
    """A data set, and what was left out while it was read."""

    name: str
    dataset: CocoDataset
    truth: GroundTruth  # boxes as annotated, where the data set's are clipped to the images
    problems: tuple[str, ...]  # a line per kind, and what has to be said about crowds


def open_data(source: Source, split: str, images: Path | None = None, allow_outside: bool = False) -> Opened:
    """Read a data set; `images` is the image folder of a COCO file, `split` counts where the source names none.

    `allow_outside` is `load_coco`'s. Raises UserError where the data cannot be read.
    """
    if source.layout == COCO:
        root = images if images is not None else find_image_folder(source.path)
        return _opened(str(source.path), *load_coco_with_truth(source.path, root, allow_outside=allow_outside))
    if images is not None:
        raise LayoutError(f"{source}: the images' folder follows from the layout; leave --images out")
    labeled = read_source(source, split)
    with scratch_folder() as folder:
        path = folder / "annotations.json"
        path.write_text(json.dumps(as_coco(labeled)), encoding="utf-8")
        return _opened(labeled.source, *load_coco_with_truth(path, labeled.root), labeled.problems)


def _opened(name: str, dataset: CocoDataset, truth: GroundTruth, problems: tuple[str, ...] = ()) -> Opened:
    """The data set with the objects that training uses."""
    used, notes = crowds_as_objects(dataset, may_be_empty=True)
    return Opened(name, used, truth, (*problems, *dataset.problems, *notes))


def open_other_split(source: Source, split: str) -> Opened | None:
    """Another split of the same source, where it has one of its own; None for COCO, and for a source that names one."""
    if source.layout == COCO or source.split:
        return None
    try:
        return open_data(source, split)
    except LayoutError:
        return None
