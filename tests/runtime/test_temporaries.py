"""What killed runs leave is removed by the next; what a living process writes stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime import temporaries
from runtime.files import atomic_path, atomic_write, require_writable
from runtime.temporaries import FOREIGN_AGE_S, MACHINE, scratch_folder, temporary_file, temporary_folder

BEGIN = "import sys, time; from pathlib import Path; from runtime.{module} import {name} as begin\n"
HOLD = "with begin(Path(sys.argv[1])) as at:\n    print(at, flush=True)\n    time.sleep(60)\n"


@contextmanager
def writing(target: Path, module: str = "files", name: str = "atomic_path") -> Iterator[tuple[Path, subprocess.Popen]]:
    """A process that has begun to write `target`, and its temporary path."""
    script = BEGIN.format(module=module, name=name) + HOLD
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip()), process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_same_target(tmp_path: Path) -> None:
    with writing(tmp_path / "a.json") as (mine, process), writing(tmp_path / "b.json") as (other, second):
        assert mine.exists()
        for one in (process, second):
            one.send_signal(signal.SIGKILL)
            one.wait()
        atomic_write(tmp_path / "a.json", "1")
        assert names(tmp_path) == sorted(["a.json", other.name]), "the other target's next writer removes its own"
        require_writable(tmp_path / "b.json")
        assert names(tmp_path) == ["a.json"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with writing(tmp_path / "a.json") as (theirs, _):
        for _ in range(3):
            atomic_write(tmp_path / "a.json", "1")
        assert names(tmp_path) == sorted(["a.json", theirs.name])


@pytest.mark.parametrize("kill", [False, True])
def test_folders_are_kept_and_removed_alike(tmp_path: Path, kill: bool) -> None:
    with writing(tmp_path / "set", "temporaries", "temporary_folder") as (theirs, process):
        (theirs / "inside").write_text("x")
        if kill:
            process.kill()
            process.wait()
        with temporary_folder(tmp_path / "set") as mine:
            (mine / "a").write_text("x")
            assert names(tmp_path) == sorted([mine.name] if kill else [mine.name, theirs.name])
        assert names(tmp_path) == ([] if kill else [theirs.name])


def test_a_forked_child_does_not_keep_what_its_killed_parent_wrote(tmp_path: Path) -> None:
    """The workers of a data loader live for seconds after their parent."""
    script = (
        "import os, sys, time; from pathlib import Path; from runtime.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as at:\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True); time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.stdout.close()
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)
        assert len(names(tmp_path)) == 1
        atomic_write(tmp_path / "a", "1")
        assert names(tmp_path) == ["a"]
    finally:
        os.kill(child, signal.SIGKILL)


def test_other_machines_are_given_a_day(tmp_path: Path) -> None:
    other = f"{(int(MACHINE, 16) + 1) % 65536:04x}"
    young, old = (tmp_path / f".a.{other}{number:08x}.tmp.json" for number in range(2))
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (time.time() - FOREIGN_AGE_S - 60,) * 2)
    atomic_write(tmp_path / "a.json", "1")
    assert names(tmp_path) == sorted([young.name, "a.json"])


def test_without_locks_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporaries, "try_lock", lambda descriptor: None)
    young, old = (tmp_path / f".a.{MACHINE}{number:08x}.tmp" for number in range(2))
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (time.time() - FOREIGN_AGE_S - 60,) * 2)
    atomic_write(tmp_path / "a", "1")
    assert names(tmp_path) == sorted([young.name, "a"])


def test_files_that_only_look_alike_stay(tmp_path: Path) -> None:
    kept = [".a.json.tmp", "a.0123456789ab.tmp.json", ".a.0123456789.tmp.json", f".b.{MACHINE}00000000.tmp.json"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    os.mkfifo(tmp_path / f".a.{MACHINE}00000001.tmp.json")  # opening it would wait for ever
    atomic_write(tmp_path / "a.json", "1")
    assert names(tmp_path) == sorted([*kept, f".a.{MACHINE}00000001.tmp.json", "a.json"])


def test_a_large_folder_is_seldom_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(320):
        (tmp_path / f"{number}.jpg").touch()
    listed: list[object] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scan(path))[1])
    for number in range(63):
        atomic_write(tmp_path / f"{number}.jpg", b"x")
    assert len(listed) == 3, "once for each 320 / 16 files"


@pytest.mark.parametrize("name", ["x" * 250, "日" * 80, "a." + "s" * 200, "名" * 40 + ".json"])
def test_names_as_long_as_a_file_system_takes(tmp_path: Path, name: str) -> None:
    atomic_write(tmp_path / name, "1")
    assert names(tmp_path) == [name]


def test_a_temporary_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = temporaries.try_lock, []

    def sweep(descriptor: int) -> bool | None:
        if not taken:  # another process lists the folder at the worst moment
            for path in tmp_path.iterdir():
                taken.append(path)
                path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(temporaries, "try_lock", sweep)
    with temporary_file(tmp_path / "a", "") as path:
        assert path.exists()
        assert path not in taken
    assert len(taken) == 1


def test_scratch_folders_are_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").write_text("x")
    assert names(tmp_path) == []


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), atomic_path(tmp_path / "a"):
        raise ValueError("no")
    assert names(tmp_path) == []
