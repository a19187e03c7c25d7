"""Writing files atomically, so that no reader sees an incomplete file, and hashing files."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import UserError


class WriteError(UserError):
    """A file could not be written."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block succeeds, and removed if it fails.

    The temporary name keeps the suffix, because writers such as OpenCV's choose the format by it. A missing folder is
    created. An OSError while writing (disk full, no permission) becomes a WriteError, and an existing file stays as it
    was.

    Pass C++ writers (`torch.save`) an open Python file, not the path: they report a full disk as a RuntimeError.
    """
    target = Path(path)
    with _temporary(target) as temporary:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, all or nothing. Raises WriteError."""
    atomic_write_together({Path(path): data})


def atomic_write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together. Raises WriteError, and replaces no file, if one of them cannot be written.

    All files are on disk before the first is renamed; then the renames follow one another, in the order given.
    """
    with ExitStack() as stack:
        written = []
        for target, data in contents.items():
            temporary = stack.enter_context(_temporary(target))
            temporary.write_bytes(as_utf8(data).encode("utf-8") if isinstance(data, str) else data)
            _flush_to_disk(temporary)
            written.append((temporary, target))
        for temporary, target in written:
            os.replace(temporary, target)


def as_utf8(text: str) -> str:
    r"""The text with each lone surrogate as "\udcXX", so that UTF-8 can hold it.

    Python has a lone surrogate for each byte of a file name that isn't UTF-8. JSON reads the escape back as the same
    surrogate, and `os.fsencode` makes the file's name of it.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise WriteError now, not after an hour's work, if `path` cannot be written. Creates a missing folder."""
    target = Path(path)
    probe = target.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
    try:
        _require_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise write_error(target, error) from error


def _require_replaceable(target: Path) -> None:
    """Raise for a folder or a device: the rename at the end would replace /dev/null, which the whole machine needs."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name", str(target))
    if target.exists() and not target.is_file():
        raise WriteError(f"cannot write {target}: it is a device or a pipe; give the name of a file")


def write_error(path: str | os.PathLike[str], error: OSError) -> WriteError:
    """The WriteError for an OSError that occurred while writing `path`."""
    reason = error.strerror or str(error) or type(error).__name__
    return WriteError(f"cannot write {path}: {reason}; free some space or choose a folder that you may write to")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as 64 hexadecimal digits. Reads the file in blocks; raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """The temporary path beside `target`, removed after the block; an OSError about either becomes a WriteError."""
    temporary = target.with_name(f".{target.stem[:100]}.{uuid.uuid4().hex[:12]}.tmp{target.suffix}")
    try:
        _require_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        if error.filename is not None and not _concerns(error, temporary, target):
            raise
        raise write_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Flush a file to disk: otherwise a power cut after the rename can leave an empty file under the final name."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, temporary: Path, target: Path) -> bool:
    """Whether the error is about the file being written or one of its folders, not about a file read meanwhile."""
    named = {os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)}
    ours = {os.fspath(temporary), os.fspath(target), *(os.fspath(parent) for parent in target.parents)}
    return bool(named & ours)
