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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from .backends.options import add_backend_arguments, backend_options
from .batch_settings import resolve_batch
from .command_names import program
from .decoders import DECODERS
from .detecting import DetectSettings, detect_images, detect_video
from .detection_files import DetectionFiles, json_file, json_lines_file
from .detection_filter import add_filter_arguments, parse_filter
from .detector import Detector
from .errors import UserError, run_main
from .files import require_writable
from .images import MAX_PIXELS
from .images.sources import Source, find_sources
from .images.video import VideoError
from .model_spec import model_summary

BATCH = 4  # default of --batch
MIN_SCORE = 0.3  # default of --score
TEXT_FORMATS = {"jsonl": json_lines_file}  # files beside detections.json, by their option's name


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("runtime.detect"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a deployed model (.onnx, .engine)")
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
    others = [options.model, target, *(source.path for source in sources)]
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
