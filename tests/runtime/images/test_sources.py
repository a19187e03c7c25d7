"""Lists of images: as editors and other systems write them."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from runtime.errors import UserError
from runtime.images.sources import find_sources
from runtime.images.video import Video


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


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((suffix, "mp4v") for suffix in (".m4v", ".mkv", ".mov", ".ts", ".mts", ".m2ts", ".3gp", ".3g2")),
        *((suffix, "MJPG") for suffix in (".avi", ".mjpeg", ".mjpg")),
        *((suffix, "WMV2") for suffix in (".wmv", ".asf")),
        *((suffix, "mpg1") for suffix in (".mpeg", ".mpg")),
        *((suffix, "mpg2") for suffix in (".vob", ".m2v", ".mxf")),
        *((".flv", "FLV1"), (".webm", "VP80"), (".y4m", "I420")),
    ],
)
def test_videos_of_every_suffix_are_found_and_read(suffix: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"film{suffix}"
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 25, (96, 64))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV does not write {codec}")
    for _ in range(5):
        writer.write(frame)
    writer.release()
    (source,) = find_sources([tmp_path], tmp_path / "out")
    assert source.is_video
    with Video(source.path) as video:
        assert [image.shape for image in video.frames()] == [(64, 96, 3)] * 5


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((32, 48, 3), grey, np.uint8)) for grey in (0, 100, 200)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=40)
    (source,) = find_sources([tmp_path], tmp_path / "out")
    assert source.is_video
    with Video(source.path) as video:
        assert [image.shape for image in video.frames()] == [(32, 48, 3)] * 3
