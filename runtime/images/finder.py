"""Finds the image files in a folder, the same ones for every command, and says what it leaves out.

Sub-folders are searched, links to files and folders are followed, suffixes count in either case. A file that several
paths lead to is found once, under the path without a link if there is one. The order is that of the names' bytes,
folder by folder, so it depends neither on the file system nor on the language of the terminal.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .decoding import SUFFIXES

NAMED = 3  # file names that a line about files left out gives

# Why an entry of a folder is left out, in the order in which the lines stand.
COMPANION = "companion file that macOS writes beside an image (its name begins with ._)"
HIDDEN = "hidden (its name begins with a dot)"
UNREADABLE = "folder that cannot be opened"
BROKEN = "link that leads nowhere"
SEARCHED = "link to a folder that is searched anyway"
TWICE = "link to an image that is found anyway"
SPECIAL = "neither file nor folder"
OUTPUT = "in the output folder"
OTHER = "of another kind by its suffix"
REASONS = (COMPANION, HIDDEN, UNREADABLE, BROKEN, SEARCHED, TWICE, SPECIAL, OUTPUT, OTHER)


@dataclass(frozen=True)
class Found:
    """The files of a folder with a wanted suffix, and a line for each reason why other entries were left out."""

    paths: tuple[Path, ...]
    left_out: tuple[str, ...]


def find_images(folder: Path, output: Path | None = None) -> Found:
    """The images in `folder` and below, by their suffixes. What lies in `output` is left out. Raises UserError.

    There may be none.
    """
    return find_files(folder, SUFFIXES, output)


def find_files(folder: Path, suffixes: Sequence[str], output: Path | None = None) -> Found:
    """The files in `folder` and below that have one of `suffixes` (in lower case), without those in `output`.

    Raises UserError where `folder` is no folder, cannot be opened, or is `output` itself.
    """
    try:
        reason = None if folder.is_dir() else "not a folder" if folder.exists() else "no such folder"
    except (OSError, ValueError) as error:  # a name that is too long, or with a NUL
        reason = getattr(error, "strerror", None) or str(error)
    if reason is not None:
        raise UserError(f"{folder}: {reason}; expected a folder of images")
    if output is not None and os.path.realpath(output) == os.path.realpath(folder):
        raise UserError(f"{folder}: the folder of the images is the output folder too; choose another with -o")
    walk = _Walk(folder, tuple(suffixes), output)
    if folder in walk.left_out[UNREADABLE]:
        raise UserError(f"{folder}: this folder cannot be opened; check who may read it")
    lines = (_line(reason, folder, entries) for reason, entries in walk.left_out.items() if entries)
    return Found(tuple(sorted(walk.found.values(), key=by_bytes)), tuple(lines))


def by_bytes(path: Path) -> tuple[bytes, ...]:
    """The key to sort paths by. Bytes, because a name that isn't UTF-8 is another text in another locale."""
    return tuple(os.fsencode(part) for part in path.parts)


class _Walk:
    """One search. Real folders come first; links wait, so that a file keeps its own name where it has one."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...], output: Path | None) -> None:
        self.suffixes = suffixes
        self.found: dict[str, Path] = {}  # by the real path
        self.left_out: dict[str, list[Path]] = {reason: [] for reason in REASONS}
        self.output = None if output is None else os.path.realpath(output)
        real = os.path.realpath(folder)
        # A link to the folder itself, or to one above it, would lead in a circle.
        self.searched = {_identity(above) for above in (Path(real), *Path(real).parents)}
        self.folders = [(folder, real)]  # that are still to be searched, each with its real path
        self.links: list[Path] = []
        while self.folders or self.links:
            while self.folders:
                self.folder(*self.folders.pop())
            waiting, self.links = sorted(self.links, key=by_bytes), []
            for link in waiting:
                self.link(link)

    def folder(self, folder: Path, real: str) -> None:
        """Take the files of a folder, whose real path is `real`, and note its folders and links."""
        if real == self.output:
            self.left_out[OUTPUT].append(folder)
            return
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if entry.name.startswith("."):
                        self.left_out[COMPANION if entry.name.startswith("._") else HIDDEN].append(path)
                    elif entry.is_symlink():
                        self.links.append(path)
                    elif entry.is_dir():
                        self.searched.add(_identity(path))
                        self.folders.append((path, os.path.join(real, entry.name)))
                    else:
                        self.file(path, os.path.join(real, entry.name))
        except OSError:
            self.left_out[UNREADABLE].append(folder)

    def file(self, path: Path, real: str) -> None:
        """Take a file that has a wanted suffix."""
        if not path.name.lower().endswith(self.suffixes):
            self.left_out[OTHER].append(path)
        elif not os.path.isfile(path):
            self.left_out[SPECIAL].append(path)
        elif real in self.found:
            self.left_out[TWICE].append(path)
        else:
            self.found[real] = path

    def link(self, path: Path) -> None:
        """Follow a link to a file or a folder."""
        real = os.path.realpath(path)
        try:
            mode = os.stat(path).st_mode
        except OSError:  # its target is missing, or it is a circle of links
            self.left_out[BROKEN].append(path)
            return
        if not stat.S_ISDIR(mode):
            self.file(path, real)
        elif _identity(path) in self.searched:
            self.left_out[SEARCHED].append(path)
        else:
            self.searched.add(_identity(path))
            self.folders.append((path, real))


def _identity(folder: Path) -> tuple[int, int] | str:
    """What tells a folder from every other, whatever path leads to it."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder)
    return status.st_dev, status.st_ino


def _line(reason: str, folder: Path, entries: Iterable[Path]) -> str:
    names = [entry.relative_to(folder).as_posix() for entry in sorted(entries, key=by_bytes)]
    return f"{len(names)} × {reason}: {', '.join(names[:NAMED])}{' …' if len(names) > NAMED else ''}"
