"""Writing files atomically, so that no reader sees an incomplete file, and hashing files."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from .errors import UserError
from .temporaries import temporary_file


class WriteError(UserError):
    """A file could not be written."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block succeeds, and removed if it fails.

    The file is there already, empty. Its name keeps the suffix, because writers such as OpenCV's choose the format by
    it. A missing folder is created. Where `path` is a link, it stays one, and the file that it leads to is replaced. An
    OSError while writing (disk full, no permission) becomes a WriteError, and an existing file stays as it was.

    Give libraries that write for themselves a `patient_file` of the path: many mishandle a full disk.
    """
    target = Path(path)
    with _temporary(target) as (temporary, place):
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, place)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`, all or nothing. Raises WriteError."""
    atomic_write_together({Path(path): data})


def atomic_write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together: all, or none. Raises WriteError where one of them cannot be written.

    All files are on disk before the first is renamed; then the renames follow one another, in the order given. Where
    one fails, those before it are undone. Only a process that is killed between two renames leaves new files beside old
    ones, so readers should be able to tell by the content (an engine's description has the engine's hash). Nobody else
    may write the same files meanwhile.
    """
    with ExitStack() as stack:
        written = []
        for target, data in contents.items():
            temporary, place = stack.enter_context(_temporary(target))
            temporary.write_bytes(as_utf8(data).encode("utf-8") if isinstance(data, str) else data)
            _flush_to_disk(temporary)
            written.append((temporary, place))
        # Of a single file nothing is undone. The last one is kept too: its rename may fail after it was done (NFS).
        kept = [stack.enter_context(_kept(place)) if len(written) > 1 else None for _, place in written]
        done = 0
        try:
            for temporary, place in written:
                done += 1
                os.replace(temporary, place)
        except BaseException as error:
            renamed = [
                (place, old)
                for (temporary, place), old in zip(written[:done], kept, strict=False)
                if not temporary.exists()
            ]
            if lost := [str(place) for place, old in reversed(renamed) if not _put_back(place, old)]:
                raise WriteError(
                    f"{', '.join(lost)}: replaced, and what was there cannot be put back, while another file that "
                    f"belongs to it cannot be written ({error}); write all of them again"
                ) from error
            raise


@contextmanager
def _kept(place: Path) -> Iterator[Path | None]:
    """A second name of what lies at `place`, or a copy where the file system has no second names; None for nothing."""
    if not place.exists():
        yield None
        return
    with temporary_file(place, place.suffix) as second:
        second.unlink()
        try:
            os.link(place, second)
        except OSError:
            shutil.copy2(place, second)
        yield second


def _put_back(place: Path, old: Path | None) -> bool:
    """Rename `old` to `place`, or remove what is there where nothing was; whether that succeeded."""
    try:
        if old is None:
            place.unlink(missing_ok=True)
        else:
            os.replace(old, place)
    except OSError:
        return False
    return True


def write_all(file: io.RawIOBase, data: Any) -> None:
    """Write all of the bytes to an unbuffered file, which may take a part at a time. Raises OSError."""
    left = memoryview(data).cast("B")
    while left:  # a disk that is nearly full takes a part, and then raises
        left = left[file.write(left) or 0 :]


@contextmanager
def patient_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for a library that mishandles a full disk; the first error of a write is raised when the block ends.

    torch.save writes on in a destructor after an error, and ends with a RuntimeError of its own. Raises OSError, and
    what the block raises where no write failed.
    """
    with open(path, "wb", buffering=0) as raw:
        file = PatientFile(raw)
        try:
            yield cast(IO[bytes], file)
        except Exception as error:
            if file.error is not None:
                raise file.error from error
            raise
        if file.error is not None:
            raise file.error


class PatientFile(io.RawIOBase):
    """A file for writing that remembers the first OSError of a write, and from then on accepts and drops everything."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the bytes, or none of them after an error. The return value is always their number."""
        if self.error is None:
            try:
                write_all(self._raw, data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether the file has positions, as files on disks have."""
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position in bytes."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """The position in bytes."""
        return self._raw.tell()


def as_utf8(text: str) -> str:
    r"""The text with each lone surrogate as "\udcXX", so that UTF-8 can hold it.

    Python has a lone surrogate for each byte of a file name that isn't UTF-8. JSON reads the escape back as the same
    surrogate, and `os.fsencode` makes the file's name of it.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise WriteError now, not after an hour's work, if `path` cannot be written. Creates a missing folder."""
    with _temporary(Path(path)):
        pass


def place_of(path: Path) -> Path:
    """Where a file is written: `path`, or the file that a link of this name leads to. Raises OSError for a circle."""
    if not path.is_symlink():
        return path
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise OSError(errno.ELOOP, "the link leads to itself", str(path))
    return place


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
def _temporary(target: Path) -> Iterator[tuple[Path, Path]]:
    """A temporary path, removed after the block, and the place that it is to be renamed to.

    An OSError about either becomes a WriteError.
    """
    with ExitStack() as stack:
        try:
            _require_replaceable(target)
            place = place_of(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(temporary_file(place, target.suffix))
        except OSError as error:
            raise write_error(target, error) from error
        try:
            yield temporary, place
        except OSError as error:
            if error.filename is not None and not _concerns(error, (temporary, place, target)):
                raise
            raise write_error(target, error) from error


def _flush_to_disk(path: Path) -> None:
    """Flush a file to disk: otherwise a power cut after the rename can leave an empty file under the final name."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _concerns(error: OSError, paths: Iterable[Path]) -> bool:
    """Whether the error is about one of these paths or their folders, not about a file read meanwhile."""
    named = {os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)}
    return any(os.fspath(part) in named for path in paths for part in (path, *path.parents))
