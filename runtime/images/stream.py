"""Reads live streams and cameras with OpenCV: reconnects, keeps memory bounded, and counts what it drops.

    capture ──one thread──▶ the newest frames, at most `QUEUE` ──▶ the consumer

A camera does not wait for a slow detector, so the oldest waiting frame is dropped for a new one. Frames keep their
order and their numbers, so a gap in the numbers is what was dropped.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from .video import VideoError, usable_rate

QUEUE = 8  # frames that wait for the consumer
RECONNECTS = 10  # default; attempts without a frame before a lost stream is given up
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before an attempt to reconnect; the wait doubles from attempt to attempt
OPEN_MS = READ_MS = 10_000  # OpenCV's limits for opening a stream and for one frame of it
CLOSE_S = 2.0  # how long closing waits for a read that is under way
_URL = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt)://", re.IGNORECASE)
_CAMERA = re.compile(r"(?:camera:)?(\d{1,3})")


class LiveFrame(NamedTuple):
    """A frame of a stream."""

    number: int  # from 0; frames that were dropped are numbered too
    time_s: float  # since the first frame
    pixels: np.ndarray  # uint8 [h, w, 3] RGB
    dropped: int  # frames that were dropped up to here
    reconnects: int  # connections that were made anew up to here


def is_stream(text: str) -> bool:
    """Whether an input is a stream's URL, camera:N, or the number of a camera; a file named like a number is a file."""
    if _URL.match(text):
        return True
    return _CAMERA.fullmatch(text) is not None and not Path(text).exists()


def public_name(address: str) -> str:
    """The address without user name and password, for messages and results."""
    return re.sub(r"(?<=://)[^/?#]*@", "", address)  # up to the last @: FFmpeg takes a password that holds one


def file_name(address: str) -> str:
    """A name for a file about the stream."""
    return re.sub(r"[^\w.-]+", "_", public_name(address)).strip("_")


def open_capture(address: str) -> Any:
    """OpenCV's capture of a stream or camera; it may not be open."""
    camera = _CAMERA.fullmatch(address)
    if camera is not None:
        return cv2.VideoCapture(int(camera[1]))
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


class LiveStream:
    """An open stream or camera. A context manager; `frames` may be iterated once.

    `say` gets a line for each lost connection, and for a film that ends early. `open_capture` makes what has OpenCV's
    `read`, `get`, `isOpened` and `release`. Raises VideoError for a stream that cannot be opened at all; one that is
    lost later is opened anew, up to `reconnects` times without a frame. A stream that announces its length, such as a
    film on a web server, ends with its last frame, and none of its frames is dropped.
    """

    def __init__(
        self,
        address: str,
        reconnects: int = RECONNECTS,
        say: Callable[[str], object] = lambda _: None,
        open_capture: Callable[[str], Any] = open_capture,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        self.name = public_name(address)
        self.dropped, self.reconnects = 0, 0
        self._address, self._most, self._say, self._open = address, reconnects, say, open_capture
        self._first_wait_s = self._wait_s = first_wait_s
        self._attempts = 0  # to connect again since the last frame: a server may accept, and send nothing
        self._capture: Any = None
        if not self._connect():
            raise VideoError(f"{self.name}: cannot be opened; check the address, and that the camera or server runs")
        self.frames_per_second = usable_rate(self._property(cv2.CAP_PROP_FPS))
        announced = self._property(cv2.CAP_PROP_FRAME_COUNT)
        self._is_live = not np.isfinite(announced) or announced <= 0
        self._announced = 0 if self._is_live else int(announced)
        self._waiting: deque[LiveFrame] = deque()
        self._changed = threading.Condition()
        self._has_ended = self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def frames(self) -> Iterator[LiveFrame]:
        """The frames in order, until the stream ends or is closed. Raises VideoError where it is lost for good."""
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._has_ended or self._is_closed)
                if self._is_closed or not self._waiting:
                    break
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame
        if self._error is not None and not self._is_closed:
            raise self._error

    def close(self) -> None:
        """End the stream; may be called at any time, and from another thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)  # it releases the capture, which must not happen during a read
        else:
            self._release()

    def __enter__(self) -> LiveStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._read_all()
        except BaseException as error:  # raised again by `frames`
            self._error = error
        finally:
            self._release()
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _read_all(self) -> None:
        number, began = 0, time.monotonic()
        while not self._is_closed:
            ok, frame = self._capture.read()
            if ok:
                self._attempts, self._wait_s = 0, self._first_wait_s
                if number == 0:
                    began = time.monotonic()
                time_s = time.monotonic() - began if self._is_live else number / self.frames_per_second
                self._put(number, time_s, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                number += 1
            elif not self._is_live:
                if number < 0.9 * self._announced:  # as of a video file: what a container announces is an estimate
                    self._say(f"{self.name}: ended after {number} of {self._announced} frames")
                return
            elif not self._reconnect(number):
                return

    def _put(self, number: int, time_s: float, pixels: np.ndarray) -> None:
        with self._changed:
            if self._is_live and len(self._waiting) >= QUEUE:
                self._waiting.popleft()
                self.dropped += 1
            else:
                self._changed.wait_for(lambda: len(self._waiting) < QUEUE or self._is_closed)
            self._waiting.append(LiveFrame(number, time_s, pixels, self.dropped, self.reconnects))
            self._changed.notify_all()

    def _reconnect(self, frames: int) -> bool:
        """Open the stream anew; False where it was closed meanwhile. Raises VideoError after too many attempts."""
        self._release()
        while self._attempts < self._most:
            self._attempts += 1
            self._say(
                f"{self.name}: lost after {frames} frames; connecting again in {self._wait_s:g} s "
                f"({self._attempts} of {self._most})"
            )
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed, self._wait_s):
                    return False
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            if self._connect():
                self.reconnects += 1
                return True
        raise VideoError(f"{self.name}: lost after {frames} frames, and not back after {self._most} attempts")

    def _connect(self) -> bool:
        self._capture = self._open(self._address)
        if not self._capture.isOpened():
            self._release()
        return self._capture is not None

    def _property(self, what: int) -> float:
        return self._capture.get(what)

    def _release(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()
