"""Finds the image and video files that a user names: directly, by folder, or in a list."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .decoding import SUFFIXES
from .finder import find_files

LIST_SUFFIX = ".txt"  # of a text file that names an image or a video per line
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class Source:
    """An image or a video file, and the name without suffix of its drawn copy inside the output folder."""

    path: Path
    name: str
    is_video: bool
    data: bytes | None = None  # the file's bytes where they are known; None: they are read from the path


def find_sources(
    inputs: Sequence[Path], out: Path | None = None, say: Callable[[str], object] = lambda _: None
) -> list[Source]:
    """The files of `inputs`, folders searched recursively, in the order of the inputs and then of the file names.

    A text file (.txt) stands for the files that its lines name, relative to the working folder as on a command line.
    Files of a folder that lie in `out` are left out, so that a second run does not detect on the drawings of the first;
    so are files that another input has brought. A file given by name is always included, even if it is missing; reading
    it reports the problem. `say` gets a line for each reason why files of a folder were left out. Raises UserError for
    a folder without images and videos, and for a list that is empty or cannot be read.
    """
    suffixes = (*SUFFIXES, *VIDEO_SUFFIXES)
    brought = {os.path.realpath(given) for given in inputs if not given.is_dir()}
    sources: list[Source] = []
    taken: set[str] = set()
    for given in inputs:
        if given.is_dir():
            inside = find_files(given, suffixes, out)
            for line in inside.left_out:
                say(f"{given}: left out {line}")
            if not inside.paths:
                left_out = f" (left out: {'; '.join(inside.left_out)})" if inside.left_out else ""
                raise UserError(f"{given}: no image or video in this folder; looked for {' '.join(suffixes)}{left_out}")
            new = inside.paths
            if len(inputs) > 1:
                real = map(os.path.realpath, inside.paths)
                new = tuple(path for path, one in zip(inside.paths, real, strict=True) if one not in brought)
                brought.update(map(os.path.realpath, new))
            if len(new) < len(inside.paths):
                say(f"{given}: left out {len(inside.paths) - len(new)} × brought by another input already")
            found = [(path, path.relative_to(given)) for path in new]
        elif given.suffix.lower() == LIST_SUFFIX:
            found = [(path, Path(path.name)) for path in _listed(given)]
        else:
            found = [(given, Path(given.name))]
        for path, relative in found:
            name = unused_name(relative.with_suffix("").as_posix(), taken)
            sources.append(Source(path, name, path.suffix.lower() in VIDEO_SUFFIXES))
    return sources


def _listed(path: Path) -> list[Path]:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot read the list of images: {reason}; expected a file name per line") from error
    if b"\0" in data or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: cannot read the list of images: not UTF-8 text; expected a file name per line")
    # Some editors begin a text with a mark. A name may be of any bytes, as in the file system.
    lines = os.fsdecode(data.removeprefix(codecs.BOM_UTF8)).split("\n")
    names = [Path(line.strip()) for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: the list is empty; expected a file name per line")
    return names


def unused_name(name: str, taken: set[str]) -> str:
    """`name`, with a number if another input took it: a.jpg and a.png, or x/a.jpg and y/a.jpg."""
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.lower())
    return candidate
