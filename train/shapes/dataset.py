"""The data set `shapes` as files: which images there are, and how they are written so that a folder is never half done.

Boxes span the whole object inside the image, also where another object hides part of it; `area` counts the mask.
With the same NumPy and OpenCV versions the same settings give the same bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from runtime.bounds import Bounds, bounds_of
from runtime.errors import UserError
from runtime.interrupts import kept_from_children
from runtime.temporaries import temporary_folder

from ..trainer.progress import Progress
from .draw import DrawnObject, draw_image
from .outlines import CATEGORIES

SPLITS = ("train", "val")
JPEG_QUALITY = 92
PNG_EVERY = 16  # every 16th image is a PNG, so that both formats are exercised
SETTINGS_NAME = "shapes.json"
_Written = tuple[dict, list[dict]]  # the entries of an image and of its objects
Images = Annotated[int, Bounds(1, 999_999)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
Size = Annotated[int, Bounds(64, 2048)]  # px
_GENERATOR_VERSION = 1  # to be raised when the same settings give other images


@dataclass(frozen=True)
class Settings:
    """The settings of a data set: images per split, the seed, the longer side of an image in px.

    Raises UserError for a number out of range.
    """

    train: Images = 2000
    val: Images = 300
    seed: Seed = 0
    size: Size = 256
    version: int = _GENERATOR_VERSION

    def __post_init__(self) -> None:
        for name, kind in (("train", Images), ("val", Images), ("seed", Seed), ("size", Size)):
            value, bounds = getattr(self, name), bounds_of(kind)
            if not bounds.holds(value):
                raise UserError(f"shapes: {name} is {value}; expected a whole number, {bounds.expected}")


def make_image(seed: int, split: str, index: int, size: int = 256) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw image `index` of a split; the image depends on these four arguments only.

    Returns the image, RGB uint8 [H, W, 3], its boxes, xyxy float32 [n, 4] px, and their class indices into CATEGORIES,
    int64 [n]. Raises UserError for an unknown split.
    """
    image, objects = _draw(seed, split, index, size)
    boxes = np.array([drawn.box_xyxy for drawn in objects], np.float32).reshape(-1, 4)
    return image, boxes, np.array([drawn.label for drawn in objects], np.int64)


def generate(
    out: str | Path, settings: Settings, *, force: bool = False, progress: bool = True, processes: int = 1
) -> bool:
    """Write the data set to the folder `out`; False if `out` already holds it, complete and with these settings.

    The folder gets its name when it is complete. `force` replaces a `shapes` data set of other settings, and nothing
    else. Raises UserError where `out` holds anything else, or can't be written.
    """
    out = Path(out).absolute()
    if not _may_write(out, settings, force):
        return False
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the images are so small that threads would take a third longer
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as unfinished:
            for split in SPLITS:
                _write_split(unfinished, split, settings, progress, processes)
            (unfinished / SETTINGS_NAME).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
            _move_into_place(unfinished, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot write the data set ({error.strerror}); free some space or choose another folder"
        ) from error
    finally:
        cv2.setNumThreads(threads)
    return True


def _draw(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, list[DrawnObject]]:
    if split not in SPLITS:
        raise UserError(f"shapes: no split {split!r}; expected one of {', '.join(SPLITS)}")
    return draw_image(np.random.default_rng([seed, SPLITS.index(split), index, size]), size)


def _may_write(out: Path, settings: Settings, force: bool) -> bool:
    """True: write; False: the data set is already there. UserError where `out` holds anything else."""
    if not out.exists() and not out.is_symlink():
        return True
    if not out.is_dir() or out.is_symlink():
        raise UserError(f"{out}: not a folder; choose another place for the data set")
    if not any(out.iterdir()):
        return True
    if not (out / SETTINGS_NAME).is_file():
        raise UserError(f"{out}: holds something other than a shapes data set; choose a new or an empty folder")
    if force:
        return True
    if not _has_settings(out, settings):
        raise UserError(
            f"{out}: holds a shapes data set of other settings; choose another folder, or replace it: --force"
        )
    if not _is_complete(out):
        raise UserError(f"{out}: files are missing from this shapes data set; write it again with --force")
    return False


def _has_settings(out: Path, settings: Settings) -> bool:
    try:
        return json.loads((out / SETTINGS_NAME).read_text(encoding="utf-8")) == asdict(settings)
    except (ValueError, RecursionError):
        return False


def _is_complete(out: Path) -> bool:
    """Whether every image that the annotations name is there."""
    try:
        for split in SPLITS:
            named = {image["file_name"] for image in json.loads((out / f"{split}.json").read_bytes())["images"]}
            if not named <= set(os.listdir(out / split)):
                return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _move_into_place(unfinished: Path, out: Path) -> None:
    """Rename `unfinished` to `out`, so that `out` is complete at every moment; the previous folder is deleted last."""
    if not out.exists():
        unfinished.rename(out)
        return
    with temporary_folder(out) as aside:
        previous = aside / out.name
        out.rename(previous)
        try:
            unfinished.rename(out)
        except OSError:
            previous.rename(out)
            raise


def _write_split(folder: Path, split: str, settings: Settings, progress: bool, processes: int) -> None:
    (folder / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    count = getattr(settings, split)
    with _in_order(partial(_write_image, folder, split, settings), count, processes) as written:
        for image, found in Progress(written, 0, count, shown=progress, unit=f"{split} image"):
            images.append(image)
            annotations += [{"id": len(annotations) + k, **annotation} for k, annotation in enumerate(found, 1)]
    categories = [{"id": number, "name": name, "supercategory": "shape"} for name, number in CATEGORIES]
    info = {"description": f"shapes: drawn images, split {split}", **asdict(settings)}
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def _in_order(function: Callable[[int], _Written], count: int, processes: int) -> Iterator[Iterator[_Written]]:
    """The results of a function for 0 … `count` − 1 in their order, computed by one process or by several."""
    if processes == 1:
        yield map(function, range(count))
        return
    # Forking a process that has threads, as torch starts them, may hang the child.
    with kept_from_children():
        pool = multiprocessing.get_context("spawn").Pool(processes, cv2.setNumThreads, (1,))
    with pool:
        yield pool.imap(function, range(count), chunksize=16)


def _write_image(folder: Path, split: str, settings: Settings, index: int) -> _Written:
    """Draw and write an image of a split; returns its entry and those of its objects, which lack their ids."""
    image, objects = _draw(settings.seed, split, index, settings.size)
    name = f"{index:06d}" + (".png" if index % PNG_EVERY == PNG_EVERY - 1 else ".jpg")
    (folder / split / name).write_bytes(encode_image(image, Path(name).suffix))
    height, width = image.shape[:2]
    entry = {"id": index + 1, "file_name": name, "height": height, "width": width}
    return entry, [_annotation(index + 1, drawn) for drawn in objects]


def _annotation(image_id: int, drawn: DrawnObject) -> dict:
    x0, y0, x1, y1 = drawn.box_xyxy
    return {
        "image_id": image_id,
        "category_id": CATEGORIES[drawn.label][1],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": drawn.area,
        "iscrowd": 0,
    }


def encode_image(image_hwc_u8: np.ndarray, suffix: str) -> bytes:
    """The bytes of a file, .jpg or .png, with an RGB image uint8 [H, W, 3]."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    return cv2.imencode(suffix, cv2.cvtColor(image_hwc_u8, cv2.COLOR_RGB2BGR), options)[1].tobytes()
