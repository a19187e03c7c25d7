"""Detect on images, folders and videos; write OUT/detections.json and drawn copies.

    python -m runtime.detect model.onnx photo.jpg
    python -m runtime.detect model.onnx photos/ film.mp4 -o found --score 0.4 --classes 1 3 5
    python -m runtime.detect model.onnx photos/ --jsonl found.jsonl

An image that cannot be read is reported, counted and skipped. If the run is interrupted or the disk fills up, the
detections so far are written all the same, with "complete": false.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .backends.options import add_backend_arguments, backend_options
from .batch_settings import WINDOW, pipeline_settings, resolve_batch
from .command_names import program
from .decoders import DECODERS
from .detection_files import DetectionFiles, detection_row, json_file, json_lines_file
from .detection_filter import KEEP_ALL, DetectionFilter, add_filter_arguments, parse_filter
from .detections import Detections
from .detector import Detector
from .errors import UserError, run_main
from .files import atomic_write, require_writable
from .images import MAX_PIXELS, Decoded, decode
from .images.draw import draw, encode_jpeg
from .images.preprocess import Batch, DeviceBatch
from .images.sources import Source, find_sources
from .images.video import Video, VideoError, drawn_video
from .model_spec import model_path, model_summary
from .pipeline import run_pipeline

BATCH = 4  # default of --batch
MIN_SCORE = 0.3  # default of --score
TEXT_FORMATS = {"jsonl": json_lines_file}  # files beside detections.json, by their option's name
WINDOW_DRAWN = 2  # batches; images that are drawn on wait at full size, up to 192 MB each


@dataclass(frozen=True)
class DetectSettings:
    """How images and videos are detected on, and what is made of the detections."""

    batch: int  # images at a time
    kept: DetectionFilter = KEEP_ALL
    draws: bool = True  # write a drawn copy of each input
    max_pixels: int = MAX_PIXELS  # larger images are skipped


def detect_images(
    detector: Detector,
    sources: Sequence[Source],
    out: Path,
    results: DetectionFiles,
    settings: DetectSettings,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Detect on image files, write to `results`, and draw into the folder `out`.

    `progress` is called with the number of images done since the last call. Raises UserError where a drawn copy would
    replace its source.
    """

    def load(source: Source) -> _Loaded:
        image = detector.load(source.path, settings.max_pixels)
        prepared = detector.prepare(image)
        if not settings.draws:
            return _Loaded(source, None, prepared)
        if isinstance(image, Decoded) and image.pixels.shape[:2] == image.size_hw:
            return _Loaded(source, image.pixels, prepared)
        # It was decoded at a fraction of its size, or lies in a GPU's memory.
        return _Loaded(source, decode(source.path, max_pixels=settings.max_pixels), prepared)

    def run(loaded: list[_Loaded]) -> list[dict[str, Any]]:
        found = detector.detect_prepared([one.prepared for one in loaded])
        return [finish(*pair) for pair in zip(loaded, found, strict=True)]

    def finish(one: _Loaded, found: Detections) -> dict[str, Any]:
        kept = settings.kept.apply(found, detector.manifest.category_ids)
        if one.image is not None:
            drawn = encode_jpeg(draw(one.image, kept, detector.classes))
            atomic_write(out / f"{one.source.name}.jpg", drawn)
        return {
            "file": str(one.source.path),
            **detection_row(one.prepared.geometries[0].image_hw, kept, detector.manifest),
        }

    if settings.draws:
        for source in sources:
            _require_other_file(out / f"{source.name}.jpg", source.path)
    pipeline = pipeline_settings(detector, settings.batch, window=WINDOW_DRAWN if settings.draws else WINDOW)
    running = run_pipeline(sources, load, lambda one: one.prepared.canvas_hw, run, pipeline)
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
    results: DetectionFiles,
    settings: DetectSettings,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Detect on a video's frames, write to `results`, and write the drawn video into the folder `out`.

    `progress` is called with the number of frames done since the last call. Raises VideoError for a video that cannot
    be opened, has no frame, or has a size that the graph does not take.
    """

    def load(frame: np.ndarray) -> _Frame:
        return _Frame(frame, detector.prepare(frame))

    def run(frames: list[_Frame]) -> list[tuple[np.ndarray, Detections]]:
        found = detector.detect_prepared([one.prepared for one in frames])
        kept = [settings.kept.apply(detections, detector.manifest.category_ids) for detections in found]
        return [(one.frame, detections) for one, detections in zip(frames, kept, strict=True)]

    target = out / f"{source.name}.mp4"
    _require_other_file(target, source.path)
    with ExitStack() as stack:
        video = stack.enter_context(Video(source.path))
        write = stack.enter_context(drawn_video(target, video.frames_per_second)) if settings.draws else None
        pipeline = pipeline_settings(detector, settings.batch, window=0)  # frames are all of one size
        running = run_pipeline(video.frames(), load, lambda one: one.prepared.canvas_hw, run, pipeline)
        stack.enter_context(closing(running))  # before the video is closed: the pipeline's thread reads from it
        count = 0
        for result in running:
            if isinstance(result, UserError):
                raise VideoError(f"{source.path}: {result}") from result
            frame, found = result
            if write is not None:
                write(draw(frame, found, detector.classes))
            position = {"frame": count, "time_s": round(count / video.frames_per_second, 3)}
            row = detection_row((frame.shape[0], frame.shape[1]), found, detector.manifest)
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
    prepared: Batch | DeviceBatch


def _require_other_file(target: Path, source: Path) -> None:
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: the drawn copy would replace its source; choose another folder with -o")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("runtime.detect"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=model_path, help="a deployed model (.onnx, .engine), or triton://host:port/model")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="input", help="images, videos, folders of them")
    parser.add_argument("-o", "--out", type=Path, default=Path("detections"), help="folder to write to (%(default)s)")
    parser.add_argument("--batch", type=int, help=f"images at a time ({BATCH}, or what the graph allows)")
    parser.add_argument("--json-only", action="store_true", help="draw nothing")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="also write a line of JSON per image as it is done")
    parser.add_argument("--max-megapixels", type=float, default=MAX_PIXELS / 1e6, help="skip images above this size")
    parser.add_argument(
        "--decode",
        choices=DECODERS,
        default=DECODERS[0],
        help="what decodes JPEG files; OpenCV decodes PNG files and videos in any case. nvimgcodec needs its AP "
        "measured by export.verify --decode (%(default)s)",
    )
    add_filter_arguments(parser, MIN_SCORE)
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if options.batch is not None and options.batch < 1:
        parser.error("--batch must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    sources = find_sources(options.inputs, options.out)
    target = options.out / "detections.json"
    require_writable(target)
    others = [Path(options.model), target, *(source.path for source in sources)]
    formats = [(name, path) for name in TEXT_FORMATS if (path := getattr(options, name)) is not None]
    for name, path in formats:
        _check_output(f"--{name}", path, others)
        others.append(path)
    with ExitStack() as stack:
        detector = stack.enter_context(Detector(options.model, decode=options.decode, **backend_options(options)))
        print(model_summary(detector, options.model))
        manifest = detector.manifest
        settings = DetectSettings(
            batch=resolve_batch([manifest.inputs], options.batch, usual=BATCH),
            kept=parse_filter(options, manifest.categories, options.model),
            draws=not options.json_only,
            max_pixels=int(options.max_megapixels * 1e6),
        )
        head = {
            "artifact": str(options.model),
            "classes": manifest.classes,
            "category_ids": manifest.category_ids,
            "min_score": settings.kept.min_score,
        }
        if settings.kept.category_ids is not None:
            head["kept_category_ids"] = settings.kept.category_ids
        started = time.perf_counter()
        writers = [stack.enter_context(json_file(target, head))]
        writers += [stack.enter_context(TEXT_FORMATS[name](path)) for name, path in formats]
        results = DetectionFiles(writers)
        _detect_all(detector, sources, options.out, results, settings)
        if results.images == 0:
            skipped = results.skipped
            raise UserError(f"none of the {len(skipped)} inputs could be read; the first: {skipped[0]['reason']}")
    seconds = time.perf_counter() - started
    if results.skipped:
        print(f"warning: {len(results.skipped)} of {len(sources)} inputs were skipped", file=sys.stderr)
    print(f"{results.images} images in {seconds:.1f} s, {results.images / seconds:.2f} images/s → {target}")
    return 0


def _check_output(option: str, path: Path, others: Sequence[Path]) -> None:
    """Raise UserError where the file cannot be written, or is one that this run reads or writes otherwise."""
    if any(path.resolve() == other.resolve() for other in others):
        raise UserError(f"{option} {path}: this run reads or writes that file already; choose another name")
    if path.is_file() or not path.exists():  # a pipe or /dev/stdout is written to as it is
        require_writable(path)


def _detect_all(
    detector: Detector, sources: Sequence[Source], out: Path, results: DetectionFiles, settings: DetectSettings
) -> None:
    """All images, then each video."""
    images = [source for source in sources if not source.is_video]
    with _bar("detect", "img", len(images)) as bar:
        detect_images(detector, images, out, results, settings, bar.update)
    for source in sources:
        if source.is_video:
            with _bar(source.path.name, "frame") as bar:
                try:
                    detect_video(detector, source, out, results, settings, bar.update)
                except VideoError as error:
                    results.skip(source.path, error)


def _bar(title: str, unit: str, total: int | None = None) -> tqdm:
    """A bar with the count, the rate and, where the total is known, the time left."""
    return tqdm(total=total, desc=title, unit=unit, disable=not sys.stderr.isatty(), leave=False)


if __name__ == "__main__":
    run_main(main)
