"""YOLO's labels: a text file for each image, a line for each object, in fractions of the image's sides.

A line is a class number and a box (centre x, centre y, width, height), or a class number and a polygon (x y x y …), of
which the enclosing box is taken. An oriented box is a polygon of four corners.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from .files import read_text
from .labeled import Box, Collector, LabeledObject, LabeledSet, LayoutError
from .yolo_folders import images_of, label_file, label_places, read_folders, whole_number

TOLERANCE = 0.01  # that a fraction may be outside 0–1, as Ultralytics allows
_POLYGON = 6  # coordinates at least


class LineError(ValueError):
    """A line that is no label: the kind of problem, and what is particular to the line."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, f" ({detail})" if detail else ""


def read_yolo(path: Path, split: str) -> LabeledSet:
    """A split of the data set that a data.yaml describes; an image without a label file has no objects.

    Category ids are the class numbers + 1. A line that is no label is dropped, and its image stays. Raises LayoutError
    where the folders aren't there, or no image has a label file.
    """
    folders = read_folders(path)
    found = Collector(folders.root)
    labelled, without = 0, list[Path]()
    for image in images_of(folders, split, found):
        if found.has(image):
            found.problems.add("image listed more than once, taken once", found.name(image))
            continue
        size_hw = found.size_of(image)
        if size_hw is None:
            continue
        labels = label_file(image)
        if labels is None:
            without.append(image)
            found.add(image, size_hw, ())
            continue
        labelled += 1
        try:
            text = read_text(labels)
        except LayoutError as error:
            reason = str(error).removeprefix(f"{labels}: ")
            found.problems.add("image whose labels cannot be read, left out", f"{found.name(labels)} ({reason})")
            continue
        objects = _objects(text, labels, size_hw, folders.names, folders.keypoint_numbers, found)
        found.add(image, size_hw, objects)
    if without and not labelled:
        places = " nor ".join(map(str, label_places(without[0])))
        raise LayoutError(f"{path}: no image of split {split!r} has a label file; there is neither {places}")
    for image in without:
        found.problems.add("image without a label file, taken as one without objects", found.name(image))
    categories = {number + 1: name for number, name in folders.names.items()}
    return found.finish(f"yolo:{path}#{split}", categories)


def _objects(
    text: str, labels: Path, size_hw: tuple[int, int], classes: Collection[int], keypoint_numbers: int, found: Collector
) -> list[LabeledObject]:
    objects = []
    height, width = size_hw
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name = f"{found.name(labels)}:{number}"
        try:
            label, (x1, y1, x2, y2), more = parse_line(line, classes, keypoint_numbers)
        except LineError as error:
            found.problems.add(f"{error.kind}, dropped", name + error.detail)
            continue
        if more:
            found.problems.add(more, name)
        box = found.box((x1 * width, y1 * height, x2 * width, y2 * height), size_hw, name)
        if box is not None:
            objects.append(LabeledObject(label + 1, box))
    return objects


def parse_line(line: str, classes: Collection[int], keypoint_numbers: int = 0) -> tuple[int, Box, str]:
    """The class number of a line, its box (xyxy, fractions), and what was left out of it, or an empty text.

    `keypoint_numbers` is how many numbers follow the box on a line of pose labels. Raises LineError.
    """
    words = line.split()
    label = whole_number(words[0])
    if label is None:
        raise LineError("line whose class is no whole number")
    if label not in classes:
        raise LineError("line of a class that has no name", f"class {label}")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        raise LineError("line with something other than numbers") from None
    if not all(abs(number) < float("inf") for number in numbers):
        raise LineError("line with a number that is not finite")
    more = ""
    if keypoint_numbers and len(numbers) == 4 + keypoint_numbers:
        numbers, more = numbers[:4], "line with key points, which were left out"
    elif len(numbers) == 5:
        numbers, more = numbers[:4], "line with a sixth number (a confidence?), which was left out"
    if len(numbers) != 4 and (len(numbers) < _POLYGON or len(numbers) % 2):
        raise LineError(
            "line with a count of numbers that is neither a box (5) nor a polygon (7, 9 …)", f"{len(words)}"
        )
    if min(numbers) < -TOLERANCE or max(numbers) > 1 + TOLERANCE:
        raise LineError("line with a number outside 0–1 (YOLO's are fractions of the image's sides)")
    if len(numbers) == 4:
        x, y, width, height = numbers
        return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), more
    xs, ys = numbers[0::2], numbers[1::2]
    return label, (min(xs), min(ys), max(xs), max(ys)), more
