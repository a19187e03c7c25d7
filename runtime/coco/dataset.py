"""A data set in COCO format as compact arrays; its images are read on demand.

I images, A annotations. COCO's boxes (x, y, width, height) become xyxy here; `results.py` has the reverse.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from ..images import MAX_PIXELS, Decoded, ImageError, decode_image
from ..images.preprocess import WantedHw, load
from ..manifest import Preprocess
from .format import (
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    Annotations,
    CocoError,
    Problems,
    categories,
    doubt_of_boxes,
    image_files,
    normalised,
    read_coco_json,
    shown,
    some,
)
from .ground_truth import GroundTruth, parse_ground_truth


class _Image(Protocol):
    """What a reader of images gives."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, in which boxes are measured."""
        ...


Sized = TypeVar("Sized", bound=_Image)


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
    crowd: np.ndarray  # bool [A]: regions, not objects: crowds (iscrowd 1), and regions to ignore
    ignore: np.ndarray  # bool [A]: regions to ignore ("ignore": 1), which are in `crowd` too
    offsets: np.ndarray  # int64 [I + 1]: the annotations of image i are offsets[i] … offsets[i + 1]
    problems: tuple[str, ...]  # what was dropped or changed while reading, a line per kind
    # Ids as the file has them, where they are not integers of 64 bits; None: as they are.
    written_image_ids: tuple[Any, ...] | None  # [I]
    written_category_ids: tuple[Any, ...] | None  # by category, as `category_ids`
    max_pixels: int = field(default=MAX_PIXELS, kw_only=True)  # larger images are not read

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

    def ignored(self, index: int) -> np.ndarray:
        """Which annotations of image `index` are regions to ignore, bool [n] (a view)."""
        return self.ignore[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def path(self, index: int) -> Path:
        """File of image `index`; it may be missing."""
        return self.root / self.file_names[index]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Annotated height and width of image `index`, px."""
        return int(self.sizes_hw[index, 0]), int(self.sizes_hw[index, 1])

    def image(self, index: int, max_pixels: int | None = None) -> np.ndarray:
        """Image `index`, uint8 [h, w, 3] RGB. Raises ImageError, also if its size is not the annotated size."""
        return self._checked(index, decode_image(self.path(index), max_pixels=max_pixels or self.max_pixels)).pixels

    def load(
        self, index: int, pre: Preprocess | None, max_pixels: int | None = None, wanted_hw: WantedHw | None = None
    ) -> Decoded:
        """Image `index`, decoded at the size its resize needs (`preprocess.load`). Raises ImageError as `image`."""
        return self._checked(index, load(self.path(index), pre, wanted_hw, max_pixels=max_pixels or self.max_pixels))

    def read(self, index: int, read: Callable[[Path], Sized]) -> Sized:
        """Image `index` as `read` reads its file. Raises ImageError as `image`."""
        return self._checked(index, read(self.path(index)))

    def _checked(self, index: int, image: Sized) -> Sized:
        if image.size_hw != self.size_hw(index):
            (height, width), (said_h, said_w) = image.size_hw, self.size_hw(index)
            raise ImageError(
                f"{self.path(index)}: the image is {width}×{height} (EXIF orientation applied), the annotations say "
                f"{said_w}×{said_h}; boxes would be misplaced, so correct either"
            )
        return image


def add_outside_argument(parser: argparse.ArgumentParser) -> None:
    """Add --allow-outside, the `allow_outside` of `load_coco`, to a command that reads annotations."""
    parser.add_argument(
        "--allow-outside", action="store_true", help="read images whose file names lead out of the folder of the images"
    )


def load_coco(
    json_path: str | os.PathLike[str], image_dir: str | os.PathLike[str], *, allow_outside: bool = False
) -> CocoDataset:
    """Read a COCO annotation file. The images need not exist yet; images without boxes are kept.

    What tools write otherwise than COCO is read where it can mean one thing only (docs/annotations.md). Unusable
    annotations (size zero, negative or not finite; outside the image; unknown category or image) are dropped and named
    in `problems`. File names that lead out of `image_dir` are refused unless `allow_outside`. Raises CocoError if the
    file as a whole is not valid COCO (see `normalised` and `image_files` of `runtime.coco.format`).
    """
    return parse_dataset(read_coco_json(Path(json_path)), Path(json_path), Path(image_dir), allow_outside)


def load_coco_with_truth(
    json_path: str | os.PathLike[str], image_dir: str | os.PathLike[str] | None, *, allow_outside: bool = False
) -> tuple[CocoDataset, GroundTruth]:
    """The data set and its ground truth, from one reading of the file. Raises as `load_coco`.

    Without an image folder the data set is good for its ids and classes: no size is read from an image's header.
    """
    content = read_coco_json(Path(json_path))
    root = None if image_dir is None else Path(image_dir)
    return parse_dataset(content, Path(json_path), root, allow_outside), parse_ground_truth(content)


def require_usable(dataset: CocoDataset, truth: GroundTruth) -> None:
    """Raise CocoError where the file has annotations, but none that can be scored on."""
    if truth.left_out and not len(truth.boxes):
        raise CocoError(
            f"{dataset.json_path}: none of its {truth.left_out} annotations can be used: {'; '.join(dataset.problems)}"
        )


def parse_dataset(content: dict[str, Any], path: Path, root: Path | None, allow_outside: bool = False) -> CocoDataset:
    """As `load_coco_with_truth`, from the file's parsed content."""
    content, problems = normalised(content, str(path)), Problems()
    for kind, name in content["notes"]:
        problems.add(kind, name)
    images, annotations = content["images"], content["annotations"]
    category_ids, classes = categories(content, problems)
    image_ids = np.array([image["id"] for image in images], np.int64)
    files = image_files(content, str(path), root, allow_outside, problems)

    rows = np.flatnonzero(annotations.usable(image_ids, category_ids))
    by_id = np.argsort(image_ids)
    index = by_id[np.searchsorted(image_ids, annotations.image_ids[rows], sorter=by_id)]
    limits_hw = files.sizes_hw if files.is_known.all() else np.where(files.is_known[:, None], files.sizes_hw, np.inf)
    boxes, is_inside = _clipped_xyxy(annotations.boxes[rows], limits_hw[index])
    is_outside = np.zeros(len(annotations.ids), bool)
    is_outside[rows[~is_inside]] = True
    annotations.name_problems(image_ids, category_ids, is_outside, problems)
    _name_unknown_ids(annotations, content, problems)
    given = annotations.boxes if len(rows) == len(annotations.boxes) else annotations.boxes[rows]
    doubt = doubt_of_boxes(given, files.sizes_hw[index]) if files.is_known.all() else None

    order = np.flatnonzero(is_inside)
    order = order[np.argsort(index[order], kind="stable")]
    counts = np.bincount(index[order], minlength=len(images))
    ignore = annotations.ignore[rows[order]]
    return CocoDataset(
        json_path=path,
        root=Path() if root is None else root,
        image_ids=image_ids,
        file_names=FileNames(files.names),
        sizes_hw=files.sizes_hw,
        classes=classes,
        category_ids=category_ids,
        boxes=boxes[order],
        labels=np.searchsorted(category_ids, annotations.category_ids[rows[order]]),
        crowd=annotations.crowd[rows[order]] | ignore,
        ignore=ignore,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        problems=(*problems.lines(), *(() if doubt is None else (f"doubtful boxes: {doubt}",))),
        written_image_ids=content["written_image_ids"],
        written_category_ids=_by_category(content),
    )


def _name_unknown_ids(annotations: Annotations, content: dict[str, Any], problems: Problems) -> None:
    """Say which ids are unknown, and which the file has: ids that count from 0 are the commonest mistake."""
    if annotations.unknown_categories:
        given = content["written_category_ids"] or [entry["id"] for entry in content["categories"]]
        names = [f"{one} {entry['name']}" for one, entry in zip(given, content["categories"], strict=True)]
        unknown = some([*map(shown, annotations.unknown_categories)])
        problems.explain(UNKNOWN_CATEGORY, f"category_id {unknown}; the file's categories are {some(names, 10)}")
    if annotations.unknown_images:
        given = content["written_image_ids"] or [entry["id"] for entry in content["images"]]
        unknown = some([*map(shown, annotations.unknown_images)])
        problems.explain(UNKNOWN_IMAGE, f"image_id {unknown}; the file's images have {some([*map(shown, given)])}")


def _by_category(content: dict[str, Any]) -> tuple[Any, ...] | None:
    """The ids of categories as written, in the order of the data set's categories."""
    written, entries = content["written_category_ids"], content["categories"]
    if written is None:
        return None
    return tuple(written[place] for place in sorted(range(len(entries)), key=lambda place: entries[place]["id"]))


def _clipped_xyxy(boxes_xywh: np.ndarray, sizes_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [A, 4] clipped to their images, float32, and whether a part of each lies inside, bool [A]."""
    first = np.maximum(boxes_xywh[:, :2], 0.0)
    last = np.minimum(boxes_xywh[:, :2] + boxes_xywh[:, 2:], sizes_hw[:, ::-1])
    boxes = np.concatenate([first, last], axis=1).astype(np.float32)
    return boxes, (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
