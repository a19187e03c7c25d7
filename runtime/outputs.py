"""Outputs never eat inputs: what a run writes is none of the files that it reads, and a folder is filled by one run."""

from __future__ import annotations

import mmap
import os
import platform
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from .errors import UserError
from .files import write_error
from .locks import is_at, let_go, try_lock

AnyPath = str | os.PathLike[str]
LOCK = "lock"  # file of a folder that one run fills
# Suffixes of what the toolkit writes: such files in a folder of images may be replaced, by a second run for instance.
_OWN_SUFFIXES = (".json", ".jsonl", ".parquet", ".onnx", ".engine", ".pt", ".cache", ".md")
_ENGINES = (".engine", ".plan", ".trt")
# An entry "location" of external_data in an ONNX file: key (field 1) and value (field 2) of a StringStringEntryProto.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\x7f]|[\x80-\xff][\x00-\x7f])", re.DOTALL)
_NOTE_BYTES = 1000  # more than the note in a lock
_Key = tuple[int, int] | str  # device and inode, or the path of what isn't there yet


class OutputError(UserError):
    """A run would write to one of its own inputs, or twice to one file; or another run fills the folder."""


def check_outputs(
    inputs: Iterable[AnyPath | None],
    outputs: Mapping[str, AnyPath | Iterable[AnyPath] | None],
    expected: str = "choose another name",
) -> None:
    """Raise OutputError where a run would write to a file that it reads, or twice to one file.

    `inputs` are files, and folders of images with all that is below them; what lies beside a model and is read with it
    is found here. `outputs` are the files that will be written, by the option that names them; None is left out. Files
    are told by inode, so that hard links and links are seen; what isn't there yet, by name. Devices and pipes are left
    out: nothing of theirs is replaced. `expected` tells what to do.
    """
    written: dict[_Key, str] = {}
    for option, given in outputs.items():
        for path in _paths(given):
            key = _key(path)
            if key is None:
                continue
            if key in written:
                raise OutputError(f"{option} {path}: this run writes that file already, by {written[key]}; {expected}")
            written[key] = f"{option} {path}"

    def refuse(key: _Key | None, name: AnyPath) -> None:
        if key is not None and key in written:
            alias = "" if written[key].endswith(f" {os.fspath(name)}") else f", as {os.fspath(name)}"
            raise OutputError(f"{written[key]}: this run reads that file{alias}; {expected}")

    replaces = any(not isinstance(key, str) for key in written)
    for given in inputs:
        if given is None or not written:
            continue
        path = Path(given)
        if path.suffix in (".onnx", *_ENGINES):
            for beside in side_files(path):
                refuse(_key(beside), beside)
        if not replaces:
            continue  # what isn't there yet is no input
        if path.is_dir():
            _refuse_images(path, refuse)
        else:
            refuse(_key(path), path)


def side_files(model: Path) -> list[Path]:
    """The files beside a model that are read, or written, with it; some may not be there."""
    names = [f"{model}.decoders.json"]
    if model.suffix in _ENGINES:
        return [Path(name) for name in (*names, f"{model}.json", f"{model}.cache")]
    return [Path(name) for name in names] + _external_data(model)


def _external_data(model: Path) -> list[Path]:
    """The files with an ONNX file's weights. Read without the onnx library, which not every machine has."""
    found: dict[bytes, None] = {}
    if not model.is_file():  # opening a pipe would wait
        return []
    with (
        suppress(OSError, ValueError),  # ValueError: an empty file can't be mapped
        open(model, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for match in _LOCATION.finditer(content):
            low, *high = match[1]
            length = (low & 0x7F) | (high[0] << 7 if high else 0)
            found[content[match.end() : match.end() + length]] = None
    return [model.parent / os.fsdecode(name) for name in found if b"\0" not in name]


def _paths(given: AnyPath | Iterable[AnyPath] | None) -> Iterator[Path]:
    if given is None:
        return
    if isinstance(given, str | os.PathLike):
        yield Path(given)
        return
    yield from map(Path, given)


def _key(path: Path) -> _Key | None:
    """Device and inode of a file or folder, the path of what isn't there; None for a device or a pipe."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        # os.path.islink is false for a name that no file can have, where Path.is_symlink raises.
        return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(path.parent), path.name)
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return found.st_dev, found.st_ino
    return None


@lru_cache(maxsize=1000)
def _real_folder(folder: Path) -> str:
    return os.path.realpath(folder)


def _refuse_images(folder: Path, refuse: Callable[[_Key | None, AnyPath], None]) -> None:
    """Call `refuse` for all files below a folder but those that the toolkit writes. It follows links to folders."""
    seen: set[tuple[int, int]] = set()
    left = [os.fspath(folder)]
    while left:
        current = left.pop()
        with suppress(OSError):
            found = os.stat(current)
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir():
                        left.append(entry.path)
                    elif not entry.name.lower().endswith(_OWN_SUFFIXES):
                        inode = _key(Path(entry.path)) if entry.is_symlink() else (found.st_dev, entry.inode())
                        refuse(inode, entry.path)


@contextmanager
def alone_in(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder while the block runs; the system releases the lock of a killed process at once.

    Waits up to `wait_s` seconds for the lock, then raises OutputError. Where a file system has no locks nobody is
    refused. Another machine's lock on a network file system ends when the server gives the machine up, in NFS 4 after
    90 seconds. A folder that is made for the lock and stays empty is removed. Raises WriteError for a folder that can't
    be written.
    """
    path, is_new, ends = folder / LOCK, not folder.exists(), time.monotonic() + wait_s
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _open_lock(path)
        except OSError as error:
            raise write_error(path, error) from error
        if try_lock(descriptor) is not False and is_at(descriptor, path):
            break
        let_go(descriptor)
        if time.monotonic() >= ends and path.exists():
            raise OutputError(
                f"{folder}: another run is working here{_holder(path)}; wait for it or choose another --out"
            )
        time.sleep(0.1)
    try:
        if not _is_lock(descriptor):
            raise OutputError(f"{path}: a file of this name lies there and is no lock; move it or choose another --out")
        with suppress(OSError):  # a note for the message above
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            if is_new and os.listdir(folder) == [LOCK]:
                path.unlink()
                folder.rmdir()
        let_go(descriptor)


def _is_lock(descriptor: int) -> bool:
    """Whether the open file is empty or has a run's note, and no data of somebody."""
    content = os.read(descriptor, _NOTE_BYTES)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return not content or (len(content) < _NOTE_BYTES and content.startswith(b"process "))


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)  # another user of the folder made it


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({text})" if text.isprintable() and 0 < len(text) < 200 else ""
