from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from runtime import files
from runtime.files import (
    PatientFile,
    WriteError,
    atomic_path,
    atomic_write,
    atomic_write_together,
    patient_file,
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


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("links", [True, False])
def test_a_rename_that_fails_undoes_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, links: bool
) -> None:
    paths = [tmp_path / name for name in ("old.engine", "new.json", "third")]
    paths[0].write_text("old")
    paths[2].write_text("old")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == paths[failing] and ".tmp" in str(source) and source.read_text() == "new":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    if not links:
        monkeypatch.setattr(files.os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    with pytest.raises(WriteError, match=rf"cannot write .*{paths[failing].name}: Operation not permitted"):
        atomic_write_together(dict.fromkeys(paths, "new"))
    assert entries(tmp_path) == ["old.engine", "third"]
    assert paths[0].read_text() == paths[2].read_text() == "old"


def test_what_cannot_be_undone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("old")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == second or first.read_text() == "new":
            raise OSError(errno.EIO, "Input/output error", str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(WriteError, match=r"first: replaced, and what was there cannot be put back.*write all of them"):
        atomic_write_together({first: "new", second: "new"})


def test_ctrl_c_between_two_renames_undoes_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    replace = os.replace

    def interrupt(source: Path, target: Path) -> None:
        if target == second:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_together({first: "new", second: "new"})
    assert entries(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO])
def test_the_first_error_of_a_patient_file_is_raised_whatever_the_library_does(tmp_path: Path, number: int) -> None:
    class Full:
        count = 0

        def write(self, data: bytes) -> int:
            self.count += 1
            if self.count > 1:
                raise OSError(number, os.strerror(number) if self.count == 2 else "another error")
            return min(len(data), 3)  # a part, as a disk that is nearly full

    file = PatientFile(Full())  # type: ignore[arg-type]
    assert file.write(b"12345") == 5
    assert file.write(memoryview(b"6789").cast("H")) == 4
    assert file.error is not None
    assert file.error.errno == number

    def fill_up() -> None:
        with atomic_path(tmp_path / "x") as temporary, patient_file(temporary) as stream:
            stream.error = OSError(number, os.strerror(number))  # type: ignore[attr-defined]
            raise RuntimeError("what the library makes of it")

    with pytest.raises(WriteError, match=os.strerror(number)):
        fill_up()
    assert entries(tmp_path) == []
    with patient_file(tmp_path / "x") as stream:
        stream.write(b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"


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
