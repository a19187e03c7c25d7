"""A data set in COCO format as compact arrays; its images are read on demand.

I images, A annotations. COCO's boxes (x, y, width, height) become xyxy here; `results.py` has the reverse.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..images import MAX_PIXELS, Decoded, ImageError, decode_image
from ..images.preprocess import WantedHw, load
from ..manifest import Preprocess
from .format import Problems, annotation_problem, categories, read_coco_json
from .ground_truth import GroundTruth, parse_ground_truth


class FileNames(Sequence[str]):
    """Strings in two arrays, so that loader processes share their memory.

    Reading a Python string changes its reference count, so each forked process copies the page of memory that holds it.
    With a tuple of 120,000 names, every process ends up with its own copy of all of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._offsets = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        index = range(len(self))[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True)
class CocoDataset:
    """Index of a data set."""

    json_path: Path
    root: Path  # the folder of the images
    image_ids: np.ndarray  # int64 [I]
    file_names: Sequence[str]  # [I]
    sizes_hw: np.ndarray  # int32 [I, 2]
    classes: tuple[str, ...]  # names, distinct, by rising category id
    category_ids: tuple[int, ...]
    boxes: np.ndarray  # float32 [A, 4] xyxy, clipped to the image, never empty
    labels: np.ndarray  # int64 [A], 0-based
    crowd: np.ndarray  # bool [A]
    offsets: np.ndarray  # int64 [I + 1]: the annotations of image i are offsets[i] … offsets[i + 1]
    problems: tuple[str, ...]  # what was dropped or changed while reading, a line per kind

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def categories(self) -> dict[int, str]:
        """Name of each category id."""
        return dict(zip(self.category_ids, self.classes, strict=True))

    def annotations(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes [n, 4], labels [n] and crowd flags [n] of image `index` (views, not copies)."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.boxes[rows], self.labels[rows], self.crowd[rows]

    def path(self, index: int) -> Path:
        """File of image `index`; it may be missing."""
        return self.root / self.file_names[index]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Annotated height and width of image `index`, px."""
        return int(self.sizes_hw[index, 0]), int(self.sizes_hw[index, 1])

    def image(self, index: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Image `index`, uint8 [h, w, 3] RGB. Raises ImageError, also if its size is not the annotated size."""
        return self._checked(index, decode_image(self.path(index), max_pixels=max_pixels)).pixels

    def load(
        self, index: int, pre: Preprocess | None, max_pixels: int = MAX_PIXELS, wanted_hw: WantedHw | None = None
    ) -> Decoded:
        """Image `index`, decoded at the size its resize needs (`preprocess.load`). Raises ImageError as `image`."""
        return self._checked(index, load(self.path(index), pre, wanted_hw, max_pixels=max_pixels))

    def _checked(self, index: int, image: Decoded) -> Decoded:
        if image.size_hw != self.size_hw(index):
            (height, width), (said_h, said_w) = image.size_hw, self.size_hw(index)
            raise ImageError(
                f"{self.path(index)}: the image is {width}×{height} (EXIF orientation applied), the annotations say "
                f"{said_w}×{said_h}; boxes would be misplaced, so correct either"
            )
        return image


def load_coco(json_path: str | os.PathLike[str], image_dir: str | os.PathLike[str]) -> CocoDataset:
    """Read a COCO annotation file. The images need not exist yet; images without boxes are kept.

    Unusable annotations (size zero, negative or not finite; outside the image; unknown category or image) are dropped
    and named in `problems`. Raises CocoError if the file as a whole is not valid COCO (see `format.read_coco_json`).
    """
    return parse_dataset(read_coco_json(Path(json_path)), Path(json_path), Path(image_dir))


def load_coco_with_truth(
    json_path: str | os.PathLike[str], image_dir: str | os.PathLike[str]
) -> tuple[CocoDataset, GroundTruth]:
    """The data set and its ground truth, from one reading of the file. Raises as `load_coco`."""
    content = read_coco_json(Path(json_path))
    return parse_dataset(content, Path(json_path), Path(image_dir)), parse_ground_truth(content)


def parse_dataset(content: dict[str, Any], path: Path, root: Path) -> CocoDataset:
    """As `load_coco`, from the file's parsed and checked content."""
    images, problems = content["images"], Problems()
    category_ids, classes = categories(content, problems)
    image_index = {image["id"]: index for index, image in enumerate(images)}
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    sizes_hw = np.array([[image["height"], image["width"]] for image in images], np.int32).reshape(-1, 2)

    rows: list[tuple[int, int, bool]] = []  # image index, label, crowd
    boxes: list[tuple[float, float, float, float]] = []
    for number, annotation in enumerate(content["annotations"]):
        name = f"annotation {annotation.get('id', f'number {number + 1}')}"
        problem = annotation_problem(annotation, image_index, label_of)
        if problem is None:
            index = image_index[annotation["image_id"]]
            box = _clipped_xyxy(annotation["bbox"], sizes_hw[index])
            if box is None:
                problem = "box outside the image"
            else:
                rows.append((index, label_of[annotation["category_id"]], bool(annotation.get("iscrowd", 0))))
                boxes.append(box)
        if problem is not None:
            problems.add(problem, name)

    table = np.array(rows, np.int64).reshape(-1, 3)
    order = np.argsort(table[:, 0], kind="stable")
    counts = np.bincount(table[:, 0], minlength=len(images))
    return CocoDataset(
        json_path=path,
        root=root,
        image_ids=np.array([image["id"] for image in images], np.int64),
        file_names=FileNames(image["file_name"] for image in images),
        sizes_hw=sizes_hw,
        classes=classes,
        category_ids=category_ids,
        boxes=np.array(boxes, np.float32).reshape(-1, 4)[order],
        labels=table[order, 1],
        crowd=table[order, 2].astype(bool),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        problems=problems.lines(),
    )


def _clipped_xyxy(bbox_xywh: list[float], size_hw: np.ndarray) -> tuple[float, float, float, float] | None:
    """The box clipped to the image, or None if no part of it lies inside."""
    x, y, width, height = bbox_xywh
    x1, x2 = max(x, 0.0), min(x + width, float(size_hw[1]))
    y1, y2 = max(y, 0.0), min(y + height, float(size_hw[0]))
    return (x1, y1, x2, y2) if np.float32(x2) > np.float32(x1) and np.float32(y2) > np.float32(y1) else None
