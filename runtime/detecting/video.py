"""Detects on the frames of videos and live streams, hands the rows to the result files, and draws."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..batch_settings import pipeline_settings
from ..detection_files import DetectionFiles, detection_row
from ..detections import Detections
from ..detector import Detector
from ..draw import draw
from ..errors import UserError
from ..images.sources import Source
from ..images.stream import LiveStream, file_name
from ..images.video import Video, VideoError, drawn_video
from ..outputs import check_outputs
from ..pipeline import run_pipeline
from ..tiling.detector import tiled
from .images import DetectSettings, drawn_path

LIVE_WAIT_S = 0.5  # how long a frame of a live stream waits for its batch to fill
Draw = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class _Frame:
    position: dict[str, Any]  # fields that its row has besides the detections
    pixels: np.ndarray  # uint8 [h, w, 3] RGB


@dataclass(frozen=True)
class _Prepared:
    frame: _Frame
    batch: Any  # as the detector prepares it
    canvas_hw: tuple[int, int]


def detect_video(
    detector: Detector,
    source: Source,
    out: Path,
    results: DetectionFiles,
    settings: DetectSettings,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Detect on a video's frames, write to `results`, and write the drawn video into the folder `out`.

    `progress` is called with the number of frames done since the last call. Raises VideoError for a video that cannot
    be opened, has no frame, or has a size that the graph does not take.
    """
    target = drawn_path(out, source.name, is_video=True)
    if settings.draws:
        check_outputs([source.path], {"the drawn copy": target}, "choose another folder with -o")
    with ExitStack() as stack:
        video = stack.enter_context(Video(source.path))
        write = stack.enter_context(drawn_video(target, video.frames_per_second)) if settings.draws else None
        frames = (
            _Frame({"frame": number, "time_s": round(number / video.frames_per_second, 3)}, pixels)
            for number, pixels in enumerate(islice(video.frames(), settings.max_frames))
        )
        running = _detect_frames(detector, frames, settings, None)
        stack.enter_context(closing(running))  # before the video is closed: the pipeline's thread reads from it
        count = _write_frames(running, detector, str(source.path), write, results, progress)
        if count == 0:
            raise VideoError(
                f"{source.path}: not one frame could be decoded; convert it, to MP4 with H.264 for instance"
            )
        expected = min(video.frames_announced, settings.max_frames or video.frames_announced)
        if count < 0.9 * expected:
            message = f"{source.path}: ended after {count} of {video.frames_announced} frames"
            tqdm.write(f"warning: {message}", file=sys.stderr)


def detect_stream(
    detector: Detector,
    stream: LiveStream,
    out: Path,
    results: DetectionFiles,
    settings: DetectSettings,
    progress: Callable[[int], object] = lambda _: None,
    drawn_name: str | None = None,
) -> None:
    """As `detect_video`, on a stream or camera. Ctrl-C ends it, and leaves the drawn video whole.

    `drawn_name` is the drawn video's, without suffix; by default it is made of the address.

    A row also has the frames that were dropped and the connections that were made anew up to there. Raises VideoError
    for a stream that has no frame, that is lost for good, or whose frames change their size while they are drawn.
    """
    interrupted: KeyboardInterrupt | None = None
    count = 0
    with ExitStack() as stack:
        target = drawn_path(out, drawn_name or file_name(stream.name), is_video=True)
        write = stack.enter_context(drawn_video(target, stream.frames_per_second)) if settings.draws else None
        frames = (
            _Frame(
                {
                    "frame": frame.number,
                    "time_s": round(frame.time_s, 3),
                    "dropped": frame.dropped,
                    "reconnects": frame.reconnects,
                },
                frame.pixels,
            )
            for frame in islice(stream.frames(), settings.max_frames)
        )
        running = _detect_frames(detector, frames, settings, LIVE_WAIT_S)
        stack.enter_context(closing(running))
        stack.callback(stream.close)  # first, so that nothing waits for the stream's next frame

        def counted(done: int) -> None:
            nonlocal count
            count += done
            progress(done)

        try:
            _write_frames(running, detector, stream.name, _of_one_size(stream.name, write), results, counted)
        except KeyboardInterrupt as error:
            interrupted = error
        if count == 0:  # raised inside: there is no drawn video to finish
            raise interrupted or VideoError(f"{stream.name}: not one frame came; check the address")
    told = f"{stream.name}: {count} frames, {stream.dropped} dropped, {stream.reconnects} times connected again"
    tqdm.write(told, file=sys.stderr)
    if interrupted is not None:
        raise interrupted


def _detect_frames(
    detector: Detector, frames: Iterable[_Frame], settings: DetectSettings, wait_s: float | None
) -> Generator[tuple[_Frame, Detections] | UserError, None, None]:
    """Each frame with what is kept of its detections, in order."""
    seeing = tiled(detector, settings.tiles)

    def load(frame: _Frame) -> _Prepared:
        size_hw = (frame.pixels.shape[0], frame.pixels.shape[1])
        return _Prepared(frame, seeing.prepare(frame.pixels), seeing.canvas_hw(size_hw))

    def run(prepared: list[_Prepared]) -> list[tuple[_Frame, Detections]]:
        found = seeing.detect_prepared([one.batch for one in prepared])
        kept = [settings.kept.apply(detections, detector.manifest.category_ids) for detections in found]
        return [(one.frame, detections) for one, detections in zip(prepared, kept, strict=True)]

    pipeline = pipeline_settings(detector, settings.batch, wait_s, window=0)  # frames are all of one size
    return run_pipeline(frames, load, lambda one: one.canvas_hw, run, pipeline)


def _write_frames(
    running: Iterable[tuple[_Frame, Detections] | UserError],
    detector: Detector,
    name: str,
    write: Draw | None,
    results: DetectionFiles,
    progress: Callable[[int], object],
) -> int:
    """Draw and write the frames; their number."""
    count = 0
    for result in running:
        if isinstance(result, UserError):
            raise VideoError(f"{name}: {result}") from result
        frame, found = result
        if write is not None:
            write(draw(frame.pixels, found, detector.classes))
        row = detection_row((frame.pixels.shape[0], frame.pixels.shape[1]), found, detector.manifest)
        results.add({"file": name, **frame.position, **row})
        count += 1
        progress(1)
    return count


def _of_one_size(name: str, write: Draw | None) -> Draw | None:
    """`write`, which raises VideoError for a frame of another size: OpenCV's writer would drop it silently."""
    if write is None:
        return None
    first: list[tuple[int, ...]] = []

    def checked(frame: np.ndarray) -> None:
        first[:] = first or [frame.shape]
        if frame.shape != first[0]:
            (height, width), (before_h, before_w) = frame.shape[:2], first[0][:2]
            raise VideoError(
                f"{name}: its frames changed from {before_w}×{before_h} to {width}×{height}, which one video cannot "
                "hold; add --json-only"
            )
        write(frame)

    return checked
