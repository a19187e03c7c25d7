"""Cameras that fail: a stand-in for OpenCV's capture, and a server of a real stream over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

ADDRESS = "rtsp://user:p%40ss@camera.example:554/live/1?x=2"


class Source:
    """A camera whose connections give as many frames as `connections` says, one after the other; None: refused.

    Frames are numbered by their pixels. Without `length` it is live.
    """

    def __init__(self, *connections: int | None, length: int = 0, pause_s: float = 0.0, fps: float = 10.0) -> None:
        self.connections, self.length, self.pause_s, self.fps = list(connections), length, pause_s, fps
        self.given, self.opened, self.released = 0, 0, 0

    def open(self, address: str) -> Capture:
        assert address == ADDRESS
        self.opened += 1
        return Capture(self, self.connections.pop(0) if self.connections else None)


class Capture:
    """What `cv2.VideoCapture` offers of it."""

    def __init__(self, source: Source, frames: int | None) -> None:
        self.source, self.left = source, frames

    def isOpened(self) -> bool:
        return self.left is not None

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: self.source.fps, cv2.CAP_PROP_FRAME_COUNT: float(self.source.length)}[what]

    def read(self) -> tuple[bool, Any]:
        assert self.left is not None
        if self.left == 0:
            return False, None
        self.left -= 1
        time.sleep(self.source.pause_s)
        frame = np.full((4, 6, 3), self.source.given % 256, np.uint8)
        frame[0, 0] = (0, 0, self.source.given // 256)  # BGR: red
        self.source.given += 1
        return True, frame

    def release(self) -> None:
        self.source.released += 1


def mjpeg(frames: list[bytes], before_close: int) -> Callable[..., BaseHTTPRequestHandler]:
    """A camera that sends JPEGs one after the other and hangs up after some; the next connection goes on."""
    left = iter(frames)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = [data for _, data in zip(range(before_close), left, strict=False)]
            if not parts:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(ConnectionError):  # the reader has gone
                for data in parts:
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                    self.wfile.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
                    time.sleep(0.01)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/camera.mjpg"
        server.shutdown()
        thread.join()
