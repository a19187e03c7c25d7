"""`yolo:data.yaml`, `voc:FOLDER#val`: how a data set is named, and the reader of each layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .createml import read_createml
from .labeled import LabeledSet, LayoutError
from .voc import read_voc
from .yolo import read_yolo
from .yolo_folders import YAML_SUFFIXES

COCO = "coco"  # which is read as it is
LAYOUTS: dict[str, Callable[[Path, str], LabeledSet]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "voc0": partial(read_voc, zero_based=True),
    "createml": read_createml,
}
_BY_SUFFIX = {".yaml": "yolo", ".yml": "yolo", ".json": COCO}


class Source(NamedTuple):
    """A data set: its layout, its file or folder, and the split where the user named one."""

    layout: str
    path: Path
    split: str = ""

    def __str__(self) -> str:
        return f"{self.layout}:{self.path}" + (f"#{self.split}" if self.split else "")


def parse_source(text: str) -> Source:
    """A source from LAYOUT:PATH or LAYOUT:PATH#SPLIT.

    Without LAYOUT, a .yaml file is YOLO's, and so is a folder with a data.yaml; a .json file is COCO's. Raises
    LayoutError for an unknown layout and for a path that isn't there.
    """
    known = (*LAYOUTS, COCO)
    layout, colon, rest = text.partition(":")
    if not colon or layout not in known:
        layout, rest = "", text
    rest = os.path.expanduser(rest)  # shells leave the ~ of yolo:~/data.yaml alone
    path, split = Path(rest), ""
    if not _exists(path) and "#" in rest:
        head, _, split = rest.rpartition("#")
        path = Path(head)
    layout = layout or _BY_SUFFIX.get(path.suffix.lower(), "")
    if not layout and rest and any(_exists(path / f"data{suffix}") for suffix in YAML_SUFFIXES):
        layout = "yolo"
    if not layout:
        ways = ", ".join(f"{name}:PATH" for name in known)
        raise LayoutError(f"{text!r} does not say how the data set is laid out; expected one of {ways}")
    if not rest or not _exists(path):
        raise LayoutError(f"{text!r}: there is no {path}; expected {layout}:PATH of a file or folder")
    return Source(layout, path, split)


def read_source(source: Source, split: str) -> LabeledSet:
    """Read a data set of another layout than COCO; `split` counts where the source names none. Raises LayoutError."""
    return LAYOUTS[source.layout](source.path, source.split or split)


def annotation_files(source: Source) -> list[Path]:
    """The JSON and YAML files of a source, which a JSON file that is written may not replace."""
    path = source.path
    if path.is_file():
        return [path]
    return [*path.glob("*.json"), *path.glob("*/*.json")] if source.layout == "createml" else []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a NUL
        return False
