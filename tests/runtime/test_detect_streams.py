"""Detecting on streams and long videos: rows in order, drops and reconnects counted, memory bounded."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from runtime.batch_settings import pipeline_settings
from runtime.detect import main
from runtime.detecting import video as detecting_video
from runtime.detecting.images import DetectSettings
from runtime.detecting.video import detect_stream, detect_video
from runtime.detection_files import DetectionFiles
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images.sources import Source as VideoSource
from runtime.images.stream import LiveStream, open_capture
from runtime.images.video import VideoError
from tests.support.fakes import RedBackend, red_image
from tests.support.streams import ADDRESS, Source, mjpeg, serving


def pictures(count: int) -> list[bytes]:
    """JPEGs whose red rectangle moves to the right."""
    images = [red_image(64, 96, (8 + 2 * number, 16, 40 + 2 * number, 48))[..., ::-1] for number in range(count)]
    return [cv2.imencode(".jpg", image)[1].tobytes() for image in images]


@pytest.fixture
def opens_http() -> None:
    with serving(mjpeg(pictures(4), before_close=4)) as url:
        capture = open_capture(url)
        if not capture.isOpened():
            pytest.skip("this OpenCV opens no stream over HTTP")
        capture.release()


def test_a_stream_from_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opens_http: None
) -> None:
    out = tmp_path / "out"
    with serving(mjpeg(pictures(28), before_close=14)) as url:
        secret = url.replace("http://", "http://me:secret@")
        command = [str(model), secret, "-o", str(out), "--backend", "cpu", "--reconnects", "1", "--score", "0.5"]
        parquet = ["--parquet", str(tmp_path / "found.parquet")] if find_spec("pyarrow") else []
        assert main([*command, "--jsonl", str(tmp_path / "found.jsonl"), *parquet]) == 0
    content = json.loads((out / "detections.json").read_text())
    rows = content["images"]
    assert [row["frame"] for row in rows] == sorted({row["frame"] for row in rows})
    assert len(rows) + rows[-1]["dropped"] == rows[-1]["frame"] + 1 >= 24
    assert {row["reconnects"] for row in rows} == {0, 1}
    assert [row["time_s"] for row in rows] == sorted(row["time_s"] for row in rows)
    if parquet:
        from pyarrow.parquet import read_table

        assert read_table(tmp_path / "found.parquet").drop_columns("reason").to_pylist()[: len(rows)] == rows
    lefts = [row["detections"][0]["box_xyxy"][0] for row in rows]
    assert lefts == sorted(lefts), "each row has the detections of its own frame"
    assert lefts[-1] > lefts[0] + 30
    assert {row["file"] for row in rows} == {url}
    ((skipped),) = content["skipped"]
    assert skipped["file"] == url
    assert "not back after 1 attempts" in skipped["reason"]
    assert "secret" not in (tmp_path / "found.jsonl").read_text() + json.dumps(content)
    said = capsys.readouterr().err
    assert "secret" not in said
    assert said.count("connecting again in") == 2


def test_a_stream_that_ends_after_some_frames(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opens_http: None
) -> None:
    out = tmp_path / "out"
    with serving(mjpeg(pictures(60), before_close=60)) as url:
        assert main([str(model), url, "-o", str(out), "--backend", "cpu", "--max-frames", "9"]) == 0
    content = json.loads((out / "detections.json").read_text())
    assert len(content["images"]) == 9
    assert (content["complete"], content["skipped"]) == (True, [])
    assert "9 frames, " in capsys.readouterr().err
    (drawn,) = out.glob("*.mp4")
    capture = cv2.VideoCapture(str(drawn))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 9
    capture.release()


def test_each_stream_has_a_drawn_video_of_its_own(model: Path, tmp_path: Path, opens_http: None) -> None:
    """Also where several addresses make the same name of a file, or one address is given twice."""
    with serving(mjpeg(pictures(60), before_close=6)) as url:
        addresses = [f"{url}/1", f"{url}_1", f"{url}/1"]
        command = [str(model), *addresses, "-o", str(tmp_path), "--backend", "cpu", "--max-frames", "2"]
        assert main([*command, "--batch", "1"]) == 0
    rows = json.loads((tmp_path / "detections.json").read_text())["images"]
    assert [row["file"] for row in rows] == [address for address in addresses for _ in range(2)]
    assert len(list(tmp_path.glob("*.mp4"))) == 3


def test_a_stream_that_is_not_there_is_one_of_the_inputs(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 1 inputs could be read; the first: http://127\.0\.0\.1:9/x"):
        main([str(model), "http://127.0.0.1:9/x", "-o", str(tmp_path / "out"), "--backend", "cpu"])


class Rows:
    """A writer that keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def skip(self, entry: dict[str, str]) -> None:
        raise AssertionError(entry)


def test_ctrl_c_ends_a_stream_and_leaves_what_was_drawn(tmp_path: Path) -> None:
    done, kept = [0], Rows()

    def progress(frames: int) -> None:
        done[0] += frames
        if done[0] == 5:
            raise KeyboardInterrupt

    stream = LiveStream(ADDRESS, open_capture=Source(10_000, pause_s=0.005).open)
    with pytest.raises(KeyboardInterrupt):
        detect_stream(
            Detector(RedBackend()), stream, tmp_path, DetectionFiles([kept]), DetectSettings(batch=2), progress
        )
    assert len(kept.rows) == 5
    (drawn,) = tmp_path.iterdir()
    assert drawn.name == "rtsp_camera.example_554_live_1_x_2.mp4"
    capture = cv2.VideoCapture(str(drawn))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    capture.release()


def test_ctrl_c_before_the_first_frame_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(LiveStream, "frames", interrupted)
    stream = LiveStream(ADDRESS, open_capture=Source(5).open)
    with pytest.raises(KeyboardInterrupt):
        detect_stream(Detector(RedBackend()), stream, tmp_path, DetectionFiles([Rows()]), DetectSettings(batch=2))
    assert list(tmp_path.iterdir()) == []


class Changing(Source):
    """A camera whose second connection has another size."""

    def open(self, address: str) -> Any:
        capture = super().open(address)
        if self.opened > 1:
            real = capture.read
            capture.read = lambda: (lambda ok, frame: (ok, None if frame is None else frame.repeat(2, 0)))(*real())
        return capture


@pytest.mark.parametrize("draws", [True, False])
def test_frames_that_change_their_size(draws: bool, tmp_path: Path) -> None:
    stream = LiveStream(ADDRESS, 1, open_capture=Changing(4, 4, pause_s=0.01).open, first_wait_s=0.01)
    kept = Rows()
    said = r"frames changed from 6×4 to 6×8, .*; add --json-only" if draws else "not back after 1 attempts"
    with pytest.raises(VideoError, match=said):
        detect_stream(
            Detector(RedBackend()), stream, tmp_path, DetectionFiles([kept]), DetectSettings(batch=1, draws=draws)
        )
    assert [row["height"] for row in kept.rows] == ([4] * 4 if draws else [4] * 4 + [8] * 4)
    assert list(tmp_path.iterdir()) == [], "half a video is none"


class Array(np.ndarray):
    """An array whose end can be watched."""


def test_memory_holds_a_few_frames_of_a_long_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is, and frames keep their order."""
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    class Long:
        frames_per_second, frames_announced = 25.0, 600

        def __init__(self, path: Path) -> None:
            pass

        def frames(self) -> Iterator[np.ndarray]:
            nonlocal alive, most
            for number in range(600):
                frame = red_image(64, 96, (8 + number % 40, 16, 50, 48)).view(Array)
                alive, most = alive + 1, max(most, alive + 1)
                weakref.finalize(frame, gone)
                yield frame

        def __enter__(self) -> Long:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(detecting_video, "Video", Long)
    detector, kept = Detector(RedBackend()), Rows()
    source = VideoSource(tmp_path / "film.mp4", "film", True)
    detect_video(detector, source, tmp_path, DetectionFiles([kept]), DetectSettings(batch=4, draws=False))
    assert [row["frame"] for row in kept.rows] == list(range(600))
    lefts = [row["detections"][0]["box_xyxy"][0] for row in kept.rows]
    assert lefts == pytest.approx([8 + number % 40 for number in range(600)])
    assert most <= pipeline_settings(detector, 4, window=0).inside + 4 < 60
