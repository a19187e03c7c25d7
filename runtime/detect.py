"""Detect on images, folders and videos: writes OUT/detections.json and drawn images.

    python -m runtime.detect model.onnx photo.jpg
    python -m runtime.detect model.onnx photos/ film.mp4 -o found --score 0.4

An image that cannot be read is reported, counted and skipped. If the run is interrupted or the disk fills up, the
detections so far are still written, with "complete": false.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from .backends.options import add_backend_arguments, backend_options
from .detections import Detections, select
from .detector import WINDOW, Detector, pipeline_settings, resolve_batch
from .errors import UserError, run_main
from .files import atomic_path, atomic_write, require_writable
from .images import MAX_PIXELS, decode
from .images.draw import draw, encode_jpeg
from .images.preprocess import Batch
from .images.preprocess import load as load_image
from .images.sources import Source, find_sources
from .images.video import Video, VideoError, drawn_video
from .manifest import Manifest
from .model_spec import model_summary
from .pipeline import run_pipeline

BATCH = 4  # where none is asked for
WINDOW_DRAWN = 2  # batches; images that will be drawn on wait as they were decoded, which can be 192 MB each


class ResultsFile:
    """Writes detections as they come, so that memory does not grow with the number of images."""

    def __init__(self, file: TextIO, head: dict[str, Any]) -> None:
        self._file = file
        self.images, self.skipped = 0, list[dict[str, str]]()
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "images": [')

    def add(self, row: dict[str, Any]) -> None:
        self._file.write((",\n" if self.images else "\n") + json.dumps(row, ensure_ascii=False))
        self.images += 1

    def skip(self, path: Path, error: UserError) -> None:
        self.skipped.append({"file": str(path), "reason": str(error)})
        tqdm.write(f"warning: skipped {error}", file=sys.stderr)

    def end(self, is_complete: bool) -> None:
        tail = {"skipped": self.skipped, "complete": is_complete}
        self._file.write("\n], " + json.dumps(tail, ensure_ascii=False)[1:] + "\n")


@contextmanager
def results_file(path: Path, head: dict[str, Any]) -> Iterator[ResultsFile]:
    """A ResultsFile that is put in place at the end, also where the block fails: as incomplete, if it has any row."""
    failure: BaseException | None = None
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        results = ResultsFile(file, head)
        try:
            yield results
        except (UserError, OSError, KeyboardInterrupt) as error:
            if not results.images:
                raise
            failure = error
        results.end(failure is None)
    if failure is not None:
        raise failure


def detect_images(
    detector: Detector,
    sources: Sequence[Source],
    out: Path,
    results: ResultsFile,
    progress: Callable[[int], object],
    *,
    batch: int,
    min_score: float,
    with_images: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Detect on image files; `progress` is told how many more were dealt with."""

    def load(source: Source) -> _Loaded:
        image = load_image(source.path, detector.load_preprocess, max_pixels=max_pixels)
        prepared = detector.prepare(image)
        if not with_images:
            return _Loaded(source, None, prepared)
        has_all = image.pixels.shape[:2] == image.size_hw  # else it was decoded at a fraction of its size
        return _Loaded(source, image.pixels if has_all else decode(source.path, max_pixels=max_pixels), prepared)

    def run(loaded: list[_Loaded]) -> list[dict[str, Any]]:
        found = detector.detect_prepared([one.prepared for one in loaded])
        return [finish(*pair) for pair in zip(loaded, found, strict=True)]

    def finish(one: _Loaded, found: Detections) -> dict[str, Any]:
        kept = select(found, found.scores >= min_score)
        if one.image is not None:
            drawn = encode_jpeg(draw(one.image, kept, detector.classes))
            atomic_write(out / f"{one.source.name}.jpg", drawn)
        return {"file": str(one.source.path), **_row(one.prepared.geometries[0].image_hw, kept, detector.manifest)}

    if with_images:
        for source in sources:
            _require_other_file(out / f"{source.name}.jpg", source.path)
    settings = pipeline_settings(detector, batch, window=WINDOW_DRAWN if with_images else WINDOW)
    running = run_pipeline(sources, load, lambda one: one.prepared.canvas_hw, run, settings)
    with closing(running):
        for source, result in zip(sources, running, strict=True):
            if isinstance(result, UserError):
                results.skip(source.path, result)
            else:
                results.add(result)
            progress(1)


def detect_video(
    detector: Detector,
    source: Source,
    out: Path,
    results: ResultsFile,
    progress: Callable[[int], object],
    *,
    batch: int,
    min_score: float,
    with_images: bool = True,
) -> None:
    """Detect on a video's frames and write the drawn video; `progress` is told how many more were dealt with.

    Raises VideoError for a video that cannot be opened, has no frame, or is of a size that the graph doesn't take.
    """

    def load(frame: np.ndarray) -> _Frame:
        return _Frame(frame, detector.prepare(frame))

    def run(frames: list[_Frame]) -> list[tuple[np.ndarray, Detections]]:
        found = detector.detect_prepared([one.prepared for one in frames])
        kept = [select(detections, detections.scores >= min_score) for detections in found]
        return [(one.frame, detections) for one, detections in zip(frames, kept, strict=True)]

    target = out / f"{source.name}.mp4"
    _require_other_file(target, source.path)
    with ExitStack() as stack:
        video = stack.enter_context(Video(source.path))
        write = stack.enter_context(drawn_video(target, video.frames_per_second)) if with_images else None
        settings = pipeline_settings(detector, batch, window=0)  # frames are all of one size
        running = run_pipeline(video.frames(), load, lambda one: one.prepared.canvas_hw, run, settings)
        stack.enter_context(closing(running))  # before the video is closed: the pipeline's thread reads from it
        count = 0
        for result in running:
            if isinstance(result, UserError):
                raise VideoError(f"{source.path}: {result}") from result
            frame, found = result
            if write is not None:
                write(draw(frame, found, detector.classes))
            position = {"frame": count, "time_s": round(count / video.frames_per_second, 3)}
            row = _row((frame.shape[0], frame.shape[1]), found, detector.manifest)
            results.add({"file": str(source.path), **position, **row})
            count += 1
            progress(1)
        if count == 0:
            raise VideoError(
                f"{source.path}: not one frame could be decoded; convert it, to MP4 with H.264 for instance"
            )
        if count < 0.9 * video.frames_announced:
            message = f"{source.path}: ended after {count} of {video.frames_announced} frames"
            tqdm.write(f"warning: {message}", file=sys.stderr)


@dataclass(frozen=True)
class _Frame:
    frame: np.ndarray
    prepared: Batch


@dataclass(frozen=True)
class _Loaded:
    source: Source
    image: np.ndarray | None  # to draw on
    prepared: Batch


def _row(image_hw: tuple[int, int], detections: Detections, manifest: Manifest) -> dict[str, Any]:
    return {
        "height": image_hw[0],
        "width": image_hw[1],
        "detections": [
            {
                "class": manifest.classes[label],
                "category_id": manifest.category_ids[label],
                "score": round(score, 6),
                "box_xyxy": [round(value, 3) for value in box],
            }
            for label, score, box in zip(
                detections.classes.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True
            )
        ],
    }


def _require_other_file(target: Path, source: Path) -> None:
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: the drawn copy would replace its source; choose another folder with -o")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a deployed model (.onnx, .engine)")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="input", help="images, videos, folders of them")
    parser.add_argument("-o", "--out", type=Path, default=Path("detections"), help="folder to write to (%(default)s)")
    parser.add_argument("--score", type=float, default=0.3, help="least score that is kept, 0–1 (%(default)s)")
    parser.add_argument("--batch", type=int, help=f"images at a time ({BATCH}, or what the graph allows)")
    parser.add_argument("--json-only", action="store_true", help="draw nothing")
    parser.add_argument("--max-megapixels", type=float, default=MAX_PIXELS / 1e6, help="larger images are refused")
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if options.batch is not None and options.batch < 1:
        parser.error("--batch must be at least 1")
    if not 0 <= options.score <= 1:
        parser.error("--score must be between 0 and 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    sources = find_sources(options.inputs, options.out)
    target = options.out / "detections.json"
    require_writable(target)
    with Detector(options.model, **backend_options(options)) as detector:
        print(model_summary(detector, options.model))
        head = {
            "artifact": str(options.model),
            "classes": detector.manifest.classes,
            "category_ids": detector.manifest.category_ids,
            "min_score": options.score,
        }
        started = time.perf_counter()
        with results_file(target, head) as results:
            _detect_all(detector, sources, results, options)
            if results.images == 0:
                skipped = results.skipped
                raise UserError(f"none of the {len(skipped)} inputs could be read; the first: {skipped[0]['reason']}")
        seconds = time.perf_counter() - started
    if results.skipped:
        print(f"warning: {len(results.skipped)} of {len(sources)} inputs were skipped", file=sys.stderr)
    print(f"{results.images} images in {seconds:.1f} s, {results.images / seconds:.2f} images/s → {target}")
    return 0


def _detect_all(
    detector: Detector, sources: Sequence[Source], results: ResultsFile, options: argparse.Namespace
) -> None:
    """All images, then each video."""
    settings = {
        "batch": resolve_batch([detector.manifest.inputs], options.batch, usual=BATCH),
        "min_score": options.score,
        "with_images": not options.json_only,
    }
    max_pixels = int(options.max_megapixels * 1e6)
    images = [source for source in sources if not source.is_video]
    with _bar("detect", "img", len(images)) as bar:
        detect_images(detector, images, options.out, results, bar.update, max_pixels=max_pixels, **settings)
    for source in sources:
        if source.is_video:
            with _bar(source.path.name, "frame") as bar:
                try:
                    detect_video(detector, source, options.out, results, bar.update, **settings)
                except VideoError as error:
                    results.skip(source.path, error)


def _bar(title: str, unit: str, total: int | None = None) -> tqdm:
    """A bar with the count, the rate and, where the total is known, the time left."""
    return tqdm(total=total, desc=title, unit=unit, disable=not sys.stderr.isatty(), leave=False)


if __name__ == "__main__":
    run_main(main)
