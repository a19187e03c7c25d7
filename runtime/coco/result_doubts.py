"""What a results file from elsewhere may have got wrong though every entry can be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .dataset import CocoDataset
from .format import doubt_of_boxes
from .results import PART, Results, take


def with_doubts(results: Results, dataset: CocoDataset, source: object) -> Results:
    """The results, with a line in `problems` for each doubt: no results, boxes in another form, classes from 0."""
    return replace(results, problems=(*results.problems, *(f"{source}: {line}" for line in _doubts(results, dataset))))


def _doubts(results: Results, dataset: CocoDataset) -> list[str]:
    if not len(results):
        return ["there are no results in this file"]
    lines = []
    results = take(results, slice(None, None, -(-len(results) // PART)))  # evenly spread: memory holds one part
    ids = np.unique(results.category_ids)
    if ids[0] == 0 and min(dataset.category_ids) == 1 and ids[-1] < max(dataset.category_ids):
        lines.append(
            "its category ids seem to be class numbers, which count from 0; the annotations' ids count from 1, so add 1"
        )
    known = np.isin(results.image_ids, dataset.image_ids)
    by_id = np.argsort(dataset.image_ids)
    places = by_id[np.searchsorted(dataset.image_ids, results.image_ids[known], sorter=by_id)]
    doubt = doubt_of_boxes(results.boxes[known], dataset.sizes_hw[places])
    return lines if doubt is None else [*lines, f"doubtful boxes: {doubt}"]
