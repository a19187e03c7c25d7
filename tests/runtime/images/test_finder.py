"""What is found in a folder: the same for every command, in one order, once, and nothing left out in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.images.finder import Found, find_files, find_images

posix = pytest.mark.skipif(os.name != "posix", reason="names of any bytes, links and rights as POSIX has them")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(found: Found, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_an_empty_folder(tmp_path: Path) -> None:
    assert find_images(tmp_path) == Found((), ())


def test_what_is_no_folder(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: not a folder"):
        find_images(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="no such folder"):
        find_images(tmp_path / "missing")


def test_folders_below_and_suffixes_in_either_case(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b/c/z.jpg", "b/a.JPeG", "a.PNG", "B.jpg", "日本 é.jpg", "b.jpg/inner.jpg")))
    assert names(find_images(tmp_path), tmp_path) == [
        "B.jpg",
        "a.PNG",
        "b/a.JPeG",
        "b/c/z.jpg",
        "b.jpg/inner.jpg",
        "日本 é.jpg",
    ]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.jpg", "._a.jpg", "x/._b.jpg", ".hidden.png", ".cache/c.jpg")))
    touch(*(tmp_path / name for name in ("1.txt", "2.txt", "3.json", "Thumbs.db")))
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["a.jpg"]
    assert [line.partition(" ×")[0] for line in found.left_out] == ["2", "2", "4"]
    assert found.left_out[0].endswith("): ._a.jpg, x/._b.jpg")
    assert found.left_out[1].endswith("): .cache, .hidden.png")
    assert found.left_out[2].endswith(": 1.txt, 2.txt, 3.json …")


def test_a_hidden_folder_that_is_named_is_searched(tmp_path: Path) -> None:
    touch(tmp_path / ".cache" / "images" / "a.jpg")
    assert len(find_images(tmp_path / ".cache").paths) == 1


def test_the_output_folder_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "out" / "a.jpg", tmp_path / "out2" / "b.jpg")
    found = find_images(tmp_path, tmp_path / "x" / ".." / "out")
    assert names(found, tmp_path) == ["a.jpg", "out2/b.jpg"]
    assert "output folder: out" in found.left_out[0]
    assert len(find_images(tmp_path / "out2", tmp_path).paths) == 1, "drawings beside the folder don't lie in it"
    with pytest.raises(UserError, match="is the output folder too"):
        find_images(tmp_path / "out", tmp_path / "out")


@posix
def test_links_are_followed_and_every_file_found_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    touch(folder / "b" / "x.jpg", elsewhere / "far.jpg", elsewhere / "deep" / "y.jpg", elsewhere / "z.txt")
    (folder / "a-link.jpg").symlink_to(folder / "b" / "x.jpg")  # sorts before the file itself
    (folder / "far.jpg").symlink_to(elsewhere / "far.jpg")
    (folder / "other").symlink_to(elsewhere)
    (folder / "b" / "up").symlink_to("..")
    (folder / "b" / "root").symlink_to("/")
    (folder / "c").symlink_to("b")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (elsewhere / "back").symlink_to(folder)
    found = find_images(folder)
    assert names(found, folder) == ["b/x.jpg", "far.jpg", "other/deep/y.jpg"]
    said = "\n".join(found.left_out)
    assert "2 × link that leads nowhere: circle.jpg, gone.jpg" in said
    assert "4 × link to a folder that is searched anyway: b/root, b/up, c …" in said
    assert "2 × link to an image that is found anyway: a-link.jpg, other/far.jpg" in said


@posix
def test_two_hard_links_are_two_files(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    os.link(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert names(find_images(tmp_path), tmp_path) == ["a.jpg", "b.jpg"]


@posix
def test_names_that_are_not_utf_8_have_their_place(tmp_path: Path) -> None:
    """By bytes, which is the order of code points for names in UTF-8."""
    spelled = [b"caf\xc3\xa9.jpg", b"caf\xe9.jpg", b"cafe.jpg", b"caf\xff.jpg", b"caf\xf0\x9f\x98\x80.jpg"]
    for name in spelled:
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert [os.fsencode(path.name) for path in find_images(tmp_path).paths] == sorted(spelled)


@posix
def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert find_images(tmp_path) == Found((), ("1 × neither file nor folder: pipe.jpg",))


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_cannot_be_opened(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "shut" / "b.jpg")
    (tmp_path / "shut").chmod(0)
    try:
        found = find_images(tmp_path)
        assert names(found, tmp_path) == ["a.jpg"]
        assert found.left_out == ("1 × folder that cannot be opened: shut",)
        with pytest.raises(UserError, match="cannot be opened"):
            find_images(tmp_path / "shut")
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_a_thousand_folders_deep(tmp_path: Path) -> None:
    folders = [tmp_path / "d"]
    while len(folders) < 1100:
        folders.append(folders[-1] / "d")
    for folder in folders:
        folder.mkdir()
    try:
        assert find_files(tmp_path, (".jpg",)) == Found((), ())
    finally:
        for folder in reversed(folders):  # pytest's own clearing up is recursive
            folder.rmdir()
