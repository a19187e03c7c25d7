"""Lists of images: as editors and other systems write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.images.sources import find_sources


@pytest.mark.parametrize(
    "content",
    [
        "a.jpg\nb c.mp4\nx/a.jpg\na.jpg\n",
        "\ufeffa.jpg\r\n\r\nb c.mp4\r\n x/a.jpg\r\na.jpg",
        "a.jpg\nb c.mp4\nx/a.jpg\na.jpg",
    ],
)
def test_a_list_stands_for_its_lines(content: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.TXT"
    listed.write_bytes(content.encode())
    sources = find_sources([listed], tmp_path / "out")
    assert [source.path for source in sources] == [Path("a.jpg"), Path("b c.mp4"), Path("x/a.jpg"), Path("a.jpg")]
    assert [source.name for source in sources] == ["a", "b c", "a-2", "a-3"], "no drawn copy replaces another"
    assert [source.is_video for source in sources] == [False, True, False, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the list is empty"), (b"\xef\xbb\xbf\r\n", "the list is empty"), (b"\xff\xfe", "not UTF-8")],
)
def test_a_list_without_names_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        find_sources([tmp_path / "list.txt"], tmp_path / "out")


def test_a_list_may_name_files_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\nnext\x0bline.jpg\n")
    sources = find_sources([tmp_path / "list.txt"], tmp_path / "out")
    assert [os.fsencode(source.path) for source in sources] == [b"caf\xe9.jpg", b"next\x0bline.jpg"]
