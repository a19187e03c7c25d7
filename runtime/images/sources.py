"""Finds the image and video files that a user names: directly, by folder, or in a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .decoding import SUFFIXES

LIST_SUFFIX = ".txt"  # of a text file that names an image or a video per line
# Of videos in a folder, as far as OpenCV's FFmpeg reads them. An animated GIF counts as a video.
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
)


@dataclass(frozen=True)
class Source:
    """An image or a video file, and the name without suffix of its drawn copy inside the output folder."""

    path: Path
    name: str
    is_video: bool
    data: bytes | None = None  # the file's bytes where they are known; None: they are read from the path


def find_sources(inputs: Sequence[Path], out: Path) -> list[Source]:
    """The files of `inputs`, folders searched recursively, in the order of the inputs and then of the file names.

    A text file (.txt) stands for the files that its lines name, relative to the working folder as on a command line.
    Files of a folder that lie in `out` are left out, so that a second run does not detect on the drawings of the first.
    A file given by name is always included, even if it is missing; reading it reports the problem. Raises UserError for
    a folder without images and videos, and for a list that is empty or cannot be read.
    """
    sources: list[Source] = []
    taken: set[str] = set()
    for given in inputs:
        if given.is_dir():
            found = [(path, path.relative_to(given)) for path in sorted(given.rglob("*")) if _is_wanted(path, out)]
            if not found:
                known = " ".join((*SUFFIXES, *VIDEO_SUFFIXES))
                raise UserError(f"{given}: no image or video in this folder; looked for {known}")
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
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors begin a text with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot read the list of images: {reason}; expected a file name per line") from error
    names = [Path(line.strip()) for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path}: the list is empty; expected a file name per line")
    return names


def _is_wanted(path: Path, out: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and suffix not in VIDEO_SUFFIXES:
        return False
    return path.is_file() and not path.name.startswith(".") and out.resolve() not in path.resolve().parents


def unused_name(name: str, taken: set[str]) -> str:
    """`name`, with a number if another input took it: a.jpg and a.png, or x/a.jpg and y/a.jpg."""
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.lower())
    return candidate
