"""COCO annotation files: as a data set, and as ground truth. pycocotools is the reference where it reads the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from runtime.coco import CocoDataset, GroundTruth, load_coco, load_ground_truth, parse_results, score
from runtime.errors import UserError

from ..mutation import json_files
from ..seeds import annotations, results
from ..target import Target, require
from .reference import differences, figures, parsed


@st.composite
def _inputs(draw: DrawFn, most: int) -> dict[str, bytes]:
    return {"a.json": draw(json_files(annotations(), most))}


def _read(folder: Path, seeds: Path) -> str:
    path = folder / "a.json"
    dataset = load_coco(path, seeds / "images")
    try:
        truth = load_ground_truth(path)
    except UserError as error:
        raise AssertionError(f"read as a data set, but not as ground truth: {error}") from error
    _check_dataset(dataset)
    content = parsed(path.read_bytes())
    given = content.get("annotations") if isinstance(content, dict) else None
    _check_counts(dataset, len(given) if isinstance(given, list) else 0)
    _check_figures(truth, content, dataset)
    for index in range(len(dataset)):
        _load_image(dataset, index)
    return f"{len(dataset)} images, {len(dataset.boxes)} boxes, {len(dataset.problems)} problems"


def _check_dataset(dataset: CocoDataset) -> None:
    count = len(dataset)
    require(len(dataset.file_names) == count and dataset.sizes_hw.shape == (count, 2), "lengths differ")
    require((dataset.sizes_hw > 0).all(), "a size that is not positive")
    require(len(set(dataset.image_ids.tolist())) == count, "image ids are not distinct")
    require(dataset.offsets[0] == 0 and dataset.offsets[-1] == len(dataset.boxes), "offsets")
    require(bool((np.diff(dataset.offsets) >= 0).all()), "offsets fall")
    require(bool(np.isfinite(dataset.boxes).all()), "boxes are not finite")
    require(len(set(dataset.classes)) == len(dataset.classes) >= 1, "class names are not distinct")
    require(all(dataset.classes) and len(dataset.category_ids) == len(dataset.classes), "a class without a name")
    for index in range(count):
        boxes, labels, crowd = dataset.annotations(index)
        height, width = dataset.size_hw(index)
        require(len(boxes) == len(labels) == len(crowd), "columns differ")
        require(bool((labels >= 0).all() and (labels < len(dataset.classes)).all()), "a label without a class")
        inside = (boxes >= 0).all() and (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
        require(bool(inside and (boxes[:, 2:] > boxes[:, :2]).all()), f"boxes outside image {index}, or empty")


def _check_counts(dataset: CocoDataset, given: int) -> None:
    """What was dropped is named: kept and counted problems make up all annotations."""
    named = sum(int(found[1]) for line in dataset.problems if (found := re.match(r"(\d+) ", line)))
    kept = len(dataset.boxes)
    require(kept + named >= given, f"{given} annotations, {kept} kept, {named} in problems {dataset.problems}")


def _check_figures(truth: GroundTruth, content: object, dataset: CocoDataset) -> None:
    """The same figures as pycocotools, where it reads the file and nothing in it is doubtful."""
    known = set(truth.image_ids.tolist())
    found = [one for one in results() if one["image_id"] in known]
    theirs = None if dataset.problems or not _is_plain(content) else figures(content, found)
    if theirs is None:
        return
    try:
        ours = score(truth, parse_results(json.loads(json.dumps(found)), "seed"))
    except UserError:  # such as results that are all of categories which the file lacks
        return
    wrong = "" if ours.problems else differences(ours.values, theirs)
    require(not wrong, f"other figures than pycocotools without a problem named: {wrong}")


def _is_plain(content: Any) -> bool:
    """Whether ids, flags and boxes are numbers: pycocotools drops what is written otherwise, or misreads it."""
    entries = content.get("annotations") or ()
    ids = [entry.get(name) for entry in entries for name in ("id", "image_id", "category_id")]
    ids += [entry.get("id") for key in ("images", "categories") for entry in content[key]]
    numbers = [entry.get(name, 0) for entry in entries for name in ("iscrowd", "area")]
    boxes = [entry.get("bbox") for entry in entries]
    numbers += [value for box in boxes if isinstance(box, list) for value in box]
    plain = all(type(value) is int for value in ids) and all(type(value) in (int, float) for value in numbers)
    return plain and all(isinstance(box, list) for box in boxes) and not any("ignore" in entry for entry in entries)


def _load_image(dataset: CocoDataset, index: int) -> None:
    try:
        image = dataset.load(index, None)
    except UserError:
        return
    require(image.size_hw == dataset.size_hw(index), "an image of another size")
    root = dataset.root.resolve()
    require(root in dataset.path(index).resolve().parents, f"{dataset.path(index)} lies outside the image folder")


def _strategy(most: int) -> SearchStrategy[dict[str, bytes]]:
    return _inputs(most)


TARGETS = {
    "annotations": Target(lambda seeds: _strategy(1), _read, 3, 60),
    "annotations, several changes": Target(lambda seeds: _strategy(5), _read, 2, 30),
}
