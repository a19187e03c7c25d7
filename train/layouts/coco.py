"""COCO's own layout: a JSON file is read as it is, only its image folder has to be found."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from .labeled import LayoutError

_LOOKED_AT = 20  # image names
_HEAD = 4 << 20  # bytes of a file in which names are looked for; those of the images come first
_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)+")')
_URL = re.compile(r'"coco_url"\s*:\s*"[^"]*/([^/"]+/[^/"]+)"')


def find_image_folder(file: Path) -> Path:
    """The folder of a COCO file's images: one that has the first images that the file names.

    Looked at are the file's folder, `images` in it, and the folders beside it and above it that are called like the
    file (train.json and train, annotations/instances_train2017.json and train2017). Raises LayoutError where none fits.
    """
    names = _first_names(file)
    above, stem = file.absolute().parent, file.stem
    short = stem.rpartition("_")[2]
    places = [above, above / "images", above / stem, above / short]
    places += [above.parent / stem, above.parent / short, above.parent / "images", above.parent / "images" / short]
    places = list(dict.fromkeys(places))
    fits = [place for place in places if names and all((place / name).is_file() for name in names[:2])]
    fits += [place for place in places if any((place / name).is_file() for name in names)]
    if not fits:
        tried = ", ".join(map(os.fspath, places[:4]))
        raise LayoutError(f"{file}: its images are in none of {tried} …; name their folder")
    return fits[0]


def _first_names(file: Path) -> list[str]:
    """The first names of images in a file, without parsing all of it."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError as error:
        raise LayoutError(f"{file}: cannot read it: {error.strerror or error}; check the path") from error
    names = []
    for found in _NAME.finditer(text):
        try:
            names.append(json.loads(found[1]).replace("\\", "/"))
        except ValueError:
            continue
        if len(names) == _LOOKED_AT:
            break
    names = names or [found[1] for found in _URL.finditer(text)][:_LOOKED_AT]
    return [name for name in names if "\0" not in name and ".." not in name.split("/") and not name.startswith("/")]
