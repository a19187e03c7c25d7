"""Temporary files and folders: their names, and the removal of those that killed runs left behind.

A temporary of NAME.SUFFIX is called .NAME.MMMMRRRRRRRR.tmp.SUFFIX (hexadecimal digits of the machine's start, then
random ones) and lies beside it, where a rename can publish it. It is locked while its process lives. Whoever writes the
same target next removes temporaries that nobody locks. A lock doesn't show what another machine does on a shared file
system, so temporaries of other machines, and all on a file system without locks, are removed when they are a day old.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .locks import is_at, let_go, try_lock

FOREIGN_AGE_S = 24 * 3600.0  # since the last change of a temporary whose process can't be seen
_LONGEST = 100  # bytes of the target's name; file systems take 255 for the whole name
_NAME = re.compile(r"\.(.*)\.([0-9a-f]{4})[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
_ENTRIES_PER_WRITE = 16  # of a folder, looked at on average for each temporary: large folders are seldom listed


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except (OSError, ValueError):
        boot = ""
    return hashlib.sha256(f"{platform.node()} {boot}".encode()).hexdigest()[:4]


MACHINE = _machine()  # four hexadecimal digits for this start of this machine


class _Kind(NamedTuple):
    """What temporaries of one target have in common in their names."""

    stem: str
    suffix: str


@dataclass
class _Listing:
    """Temporaries that a folder had when it was listed, and how many may be made before it is listed again."""

    found: dict[_Kind, list[tuple[Path, str]]]  # with the machines that made them
    left: int


_listings: dict[Path, _Listing] = {}


@contextmanager
def temporary_file(target: Path, suffix: str) -> Iterator[Path]:
    """An empty, locked file beside `target`; it is removed after the block unless it was renamed. Raises OSError.

    What killed runs left of the same target is removed before.
    """
    kind = _Kind(_shortened(target.stem), suffix if len(os.fsencode(suffix)) < _LONGEST else "")
    _remove_abandoned(target.parent, kind)
    path, descriptor = _reserve(target.parent, kind, None)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if descriptor is not None:
            let_go(descriptor)


@contextmanager
def temporary_folder(target: Path, mode: int = 0o777) -> Iterator[Path]:
    """As `temporary_file`, a folder with these permissions (less the umask). Raises OSError."""
    kind = _Kind(_shortened(target.name), "")
    _remove_abandoned(target.parent, kind)
    path, descriptor = _reserve(target.parent, kind, mode)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            let_go(descriptor)


def scratch_folder() -> AbstractContextManager[Path]:
    """A folder of this process's own among the system's temporary files, removed after the block. Raises OSError."""
    return temporary_folder(Path(tempfile.gettempdir(), "atss-toolkit"), 0o700)


def _shortened(name: str) -> str:
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return name


def _reserve(folder: Path, kind: _Kind, mode: int | None) -> tuple[Path, int | None]:
    """Make and lock a temporary, a folder where `mode` is given; no descriptor on Windows, which can't rename it then.

    Another process may list it before it is locked, and remove it: then it is made again.
    """
    while True:
        path = folder / f".{kind.stem}.{MACHINE}{uuid.uuid4().hex[:8]}.tmp{kind.suffix}"
        if mode is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        else:
            os.mkdir(path, mode)
            if sys.platform == "win32":
                return path, None
            descriptor = os.open(path, os.O_RDONLY)
        if sys.platform == "win32":
            os.close(descriptor)
            return path, None
        if try_lock(descriptor) is not False and is_at(descriptor, path, follow_symlinks=False):
            return path, descriptor
        let_go(descriptor)


def _remove_abandoned(folder: Path, kind: _Kind) -> None:
    folder = Path(os.path.abspath(folder))
    listing = _listings.get(folder)
    if listing is None or listing.left <= 0:
        listing = _listings[folder] = _list(folder)
    listing.left -= 1
    for path, machine in listing.found.pop(kind, ()):
        with suppress(OSError):
            _remove_if_abandoned(path, machine)


def _list(folder: Path) -> _Listing:
    found: dict[_Kind, list[tuple[Path, str]]] = {}
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            if entry.name.startswith(".") and (match := _NAME.fullmatch(entry.name)):
                found.setdefault(_Kind(match[1], match[3] or ""), []).append((Path(entry.path), match[2]))
    return _Listing(found, 1 + count // _ENTRIES_PER_WRITE)


def _remove_if_abandoned(path: Path, machine: str) -> None:
    """Remove a temporary unless a living process has it, here or, as far as its age tells, on another machine."""
    kind = os.stat(path, follow_symlinks=False)
    if not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
        return
    descriptor = _open(path)
    try:
        lock = None if sys.platform == "win32" else try_lock(descriptor)
        is_dead = machine == MACHINE and lock is True
        if lock is not False and (is_dead or time.time() - kind.st_mtime > FOREIGN_AGE_S):
            if stat.S_ISDIR(kind.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    finally:
        let_go(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR)  # NFS locks only what is open for writing
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY)
