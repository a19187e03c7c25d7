from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from runtime import files
from runtime.files import (
    WriteError,
    atomic_path,
    atomic_write,
    atomic_write_together,
    require_writable,
    sha256_file,
)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(target: Path, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def test_writes_bytes_and_text_and_makes_the_folder(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b.bin", b"\x00\xff")
    atomic_write(tmp_path / "a" / "c.txt", "größe")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "c.txt").read_text(encoding="utf-8") == "größe"
    assert entries(tmp_path / "a") == ["b.bin", "c.txt"]


def test_the_temporary_path_lies_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x.mp4") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        temporary.write_bytes(b"1")
        assert not (tmp_path / "x.mp4").exists()
    assert entries(tmp_path) == ["x.mp4"]


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with (tmp_path / "x").open() as reader:
        atomic_write(tmp_path / "x", "new content")
        assert reader.read() == "old"
    assert (tmp_path / "x").read_text() == "new content"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(type(error)):
        fail_halfway(target, error)
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["x"]


def test_a_full_disk_is_a_write_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(WriteError, match=r"cannot write .*x: No space left on device; free some space"):
        fail_halfway(target, OSError(errno.ENOSPC, "No space left on device"))
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["x"]


def test_files_that_belong_together_are_all_written_or_none(tmp_path: Path) -> None:
    atomic_write_together({})
    first, second = tmp_path / "first", tmp_path / "second"
    atomic_write_together({first: b"1", second: "2"})
    assert (first.read_text(), second.read_text()) == ("1", "2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=r"cannot write .*folder"):
        atomic_write_together({first: b"new", tmp_path / "folder": b"new"})
    assert (first.read_text(), second.read_text()) == ("1", "2")
    assert entries(tmp_path) == ["first", "folder", "second"]


def test_the_renames_wait_until_all_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (done.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(files.os, "replace", lambda *paths: (done.append(paths[1].name), replace(*paths)))
    atomic_write_together({tmp_path / "first": b"1", tmp_path / "second": b"2"})
    assert done == ["fsync", "fsync", "first", "second"]


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        (tmp_path / "other").read_text()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda path: atomic_write(path, b""), require_writable):
        with pytest.raises(WriteError, match=r"cannot write .*file/x: (Not a directory|File exists)"):
            write(tmp_path / "file" / "x")


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for write in (lambda path: atomic_write(path, b""), require_writable):
        with pytest.raises(WriteError, match="cannot write"):
            write(tmp_path / "x")
    assert entries(tmp_path) == ["x"]


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Whoever may write to /dev would lose /dev/null for the whole machine with `--json /dev/null`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (lambda path: atomic_write(path, b""), require_writable):
        for path in (pipe, Path(os.devnull)):
            with pytest.raises(WriteError, match="a device or a pipe; give the name of a file"):
                write(path)
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    atomic_write(link, b"x")
    atomic_write(link, b"y")
    assert link.read_bytes() == b"y"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match="Permission denied"):
            require_writable(tmp_path / "x")
    finally:
        tmp_path.chmod(0o700)


def test_an_unwritable_folder_as_the_system_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for write in (lambda path: atomic_write(path, b""), require_writable):
        with pytest.raises(WriteError, match=r"cannot write .*x: Permission denied; .*folder that you may write to"):
            write(tmp_path / "x")


def test_require_writable_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "x")
    assert entries(tmp_path / "new") == []


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "x", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"a" * size)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"a" * size).hexdigest()
