"""Which images the page shows, and how large their copies are."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import cv2
import numpy as np

from runtime.report.content import ImageContent
from runtime.report.thumbnails import SIDES, chosen_images, make_thumbnails
from tests.support.report_content import report_content


def _images(folder: Path | None, count: int = 4) -> list[ImageContent]:
    return list(report_content(folder, images=count).images)


def test_no_image_and_no_budget() -> None:
    assert chosen_images([]) == []
    assert make_thumbnails([], 0) == []


def test_a_budget_makes_thumbnails_smaller_and_then_fewer(tmp_path: Path) -> None:
    images = _images(tmp_path)
    large = make_thumbnails(images, 10_000_000)
    assert [found.width for found in large] == [640] * 4
    half = sum(len(found.data) for found in large) // 2
    smaller = make_thumbnails(images, half)
    assert len(smaller) == 4
    assert smaller[0].width in SIDES[1:]
    assert sum(len(found.data) for found in smaller) <= half
    least = make_thumbnails(images, 1)
    assert least == []


def test_a_thumbnail_is_the_image_at_its_scale(tmp_path: Path) -> None:
    pixels = np.zeros((200, 1600, 3), np.uint8)
    pixels[:, 800:] = (10, 20, 220)  # BGR: red on the right
    path = tmp_path / "wide.png"
    assert cv2.imwrite(str(path), pixels)
    image = ImageContent("wide.png", path, (200, 1600), (), (), 1.0)
    (found,) = make_thumbnails([image], 1_000_000)
    assert (found.width, found.height, found.scale) == (640, 80, 0.4)
    data = np.frombuffer(base64.b64decode(found.data.partition(",")[2]), np.uint8)
    small = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert small.shape == (80, 640, 3)
    assert np.abs(small[40, 600].astype(int) - (10, 20, 220)).max() < 12
    assert small[40, 20].max() < 12


def test_an_unreadable_image_and_one_of_another_size_say_why(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    images = [
        dataclasses.replace(_images(tmp_path, 1)[0], path=tmp_path / "cut.jpg"),
        dataclasses.replace(_images(tmp_path, 1)[0], path=tmp_path / "absent.jpg"),
        dataclasses.replace(_images(tmp_path, 1)[0], size_hw=(100, 640)),
        dataclasses.replace(_images(tmp_path, 1)[0], path=None),
    ]
    found = make_thumbnails(images, 1_000_000)
    assert [bool(one.problem) for one in found] == [True, True, True, False]
    assert all(one.data == "" for one in found)
    assert "640×480" in found[2].problem


def test_the_worst_and_the_most_changed_are_chosen_worst_first() -> None:
    base = _images(None, 1)[0]
    images = [
        dataclasses.replace(base, name=str(place), badness=float(place), changed=float(max(0, 5 - place)))
        for place in range(20)
    ]
    assert [image.name for image in chosen_images(images, 4)] == ["19", "18", "1", "0"]
    still = [dataclasses.replace(image, changed=0.0) for image in images]
    assert [image.name for image in chosen_images(still, 4)] == ["19", "18", "17", "16"]
