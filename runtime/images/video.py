"""Reads and writes video files with OpenCV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..files import WriteError, as_utf8, atomic_path

FRAMES_PER_SECOND = 25.0  # where a container or a camera does not say


class VideoError(UserError):
    """A video that cannot be read."""


def usable_rate(rate: float) -> float:
    """Frames per second as a capture reports them, or the usual rate for a report that cannot be true."""
    return float(rate) if np.isfinite(rate) and 0 < rate <= 1000 else FRAMES_PER_SECOND


class Video:
    """An open video file: its rate, announced length, and its frames, once. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise VideoError(f"{path}: no such file; check the path")
        _require_utf8(path, VideoError)
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise VideoError(f"{path}: OpenCV cannot open this video; convert it, to MP4 with H.264 for instance")
        self.frames_per_second = usable_rate(self._capture.get(cv2.CAP_PROP_FPS))
        self.frames_announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # as the container claims

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, uint8 [h, w, 3] RGB, until the file ends or can no longer be decoded."""
        while True:
            ok, frame = self._capture.read()
            if not ok:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()


@contextmanager
def drawn_video(path: Path, frames_per_second: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a frame (uint8 [h, w, 3] RGB, all of one size) to an MP4 file.

    The file appears when the block succeeds. Raises WriteError.
    """
    _require_utf8(path, WriteError)
    writer: cv2.VideoWriter | None = None
    count = 0
    with atomic_path(path) as temporary:

        def write(frame: np.ndarray) -> None:
            nonlocal writer, count
            if writer is None:
                size_wh = (frame.shape[1], frame.shape[0])
                code = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(temporary), code, frames_per_second, size_wh)
                if not writer.isOpened():
                    raise WriteError(f"cannot write {path}: OpenCV cannot encode a video of {size_wh[0]}×{size_wh[1]}")
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            count += 1

        try:
            yield write
        finally:
            if writer is not None:
                writer.release()
        # OpenCV does not report a full disk, but a file without its end cannot be read back.
        if _frame_count(temporary) < count:
            raise WriteError(f"cannot write {path}: the video is incomplete; free some space or choose another folder")


def _require_utf8(path: Path, kind: type[UserError]) -> None:
    if as_utf8(str(path)) != str(path):
        raise kind(f"{path}: OpenCV opens no video whose name is not UTF-8; rename it")


def _frame_count(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
