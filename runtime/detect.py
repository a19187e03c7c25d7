"""Detect on images, folders, videos and streams; write OUT/detections.json and drawn copies.

    python -m runtime.detect model.onnx photo.jpg
    python -m runtime.detect model.onnx photos/ film.mp4 -o found --score 0.4 --classes 1 3 5
    python -m runtime.detect model.onnx photos/ --jsonl found.jsonl
    python -m runtime.detect model.onnx rtsp://camera/stream1 --json-only --jsonl live.jsonl
    python -m runtime.detect model.onnx list.txt --ray auto --parquet found.parquet

An image that cannot be read is reported, counted and skipped. If the run is interrupted or the disk fills up, the
detections so far are written all the same, with "complete": false.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from .backends.options import add_backend_arguments, backend_options
from .batch_settings import resolve_batch
from .bounds import Batch, Count, Positive, argument
from .cluster.connection import connected
from .cluster.model import ClusterModel, describe_model, on_any_node
from .cluster.options import add_cluster_arguments, parse_cluster
from .cluster.pool import find_pool, needs_gpu, run_once
from .command_names import program
from .command_parser import CommandParser
from .decoders import DECODERS
from .detecting.cluster import detect_images_on_cluster
from .detecting.images import DetectSettings, detect_images, drawn_path
from .detecting.video import detect_stream, detect_video
from .detection_files import DetectionFiles, json_file, json_lines_file, parquet_file
from .detection_filter import add_filter_arguments, parse_filter
from .detector import Detector
from .errors import UserError, run_main
from .files import require_writable
from .images.limit import add_limit_argument, max_pixels
from .images.sources import Source, find_sources, unused_name
from .images.stored import SUFFIX as PARQUET
from .images.stored import RowGroup, find_parquet, holds_images, named_paths, row_groups
from .images.stream import RECONNECTS, LiveStream, file_name, is_stream, public_name
from .images.video import VideoError
from .manifest import Manifest
from .model_spec import ModelSpec, model_path, model_summary
from .outputs import check_outputs
from .terminal import printable
from .tiling.settings import add_tile_arguments, parse_tiles

BATCH = 4  # default of --batch
MIN_SCORE = 0.3  # default of --score
TEXT_FORMATS = {"jsonl": json_lines_file}  # files beside detections.json, by their option's name
FORMATS = {**TEXT_FORMATS, "parquet": parquet_file}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog=program("runtime.detect"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=model_path, help="a deployed model (.onnx, .engine), or triton://host:port/model")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="input",
        help="images, videos, folders of them, lists of them (.txt), Parquet files, streams (rtsp://…), camera:0",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("detections"), help="folder to write to (%(default)s)")
    parser.add_argument("--batch", type=argument(Batch), help=f"images at a time ({BATCH}, or what the graph allows)")
    parser.add_argument("--json-only", action="store_true", help="draw nothing")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="also write a line of JSON per image as it is done")
    parser.add_argument("--parquet", type=Path, metavar="FILE", help="also write a Parquet file, a row per image")
    add_limit_argument(parser)
    parser.add_argument(
        "--decode",
        choices=DECODERS,
        default=DECODERS[0],
        help="what decodes JPEG files; OpenCV decodes PNG files and videos in any case. nvimgcodec needs its AP "
        "measured by export.verify --decode (%(default)s)",
    )
    parser.add_argument(
        "--max-frames", type=argument(Positive), metavar="N", help="end each video and stream after N frames"
    )
    parser.add_argument(
        "--reconnects",
        type=argument(Count),
        default=RECONNECTS,
        metavar="N",
        help="attempts to find a lost stream (%(default)s)",
    )
    add_filter_arguments(parser, MIN_SCORE)
    add_tile_arguments(parser)
    add_backend_arguments(parser)
    add_cluster_arguments(parser)
    options = parser.parse_args(arguments)
    options.cluster = parse_cluster(parser, options)
    return options


@dataclass(frozen=True)
class Inputs:
    """What a run detects on."""

    sources: list[Source]
    streams: Sequence[str]
    groups: list[RowGroup]  # of Parquet files, images inside

    @property
    def count(self) -> int:
        """Images, videos and streams."""
        return len(self.sources) + len(self.streams) + sum(group.rows for group in self.groups)


class Opened(NamedTuple):
    """A model that is ready, here or on a cluster."""

    manifest: Manifest
    summary: str
    detect: Callable[[Inputs, DetectionFiles, DetectSettings], None]


@contextmanager
def _here(options: argparse.Namespace) -> Iterator[Opened]:
    with Detector(options.model, decode=options.decode, **backend_options(options)) as detector:

        def detect(inputs: Inputs, results: DetectionFiles, settings: DetectSettings) -> None:
            _detect_all(detector, inputs, options, results, settings)

        yield Opened(detector.manifest, model_summary(detector, options.model), detect)


@contextmanager
def _on_cluster(options: argparse.Namespace) -> Iterator[Opened]:
    spec = ModelSpec(options.model)
    model = ClusterModel(on_any_node(spec), {**backend_options(options), "decode": options.decode})
    with connected(options.cluster.address) as ray:
        pool = find_pool(ray, options.cluster.actors, needs_gpu(spec, options.backend))
        facts = run_once(ray, pool, describe_model, model)

        def detect(inputs: Inputs, results: DetectionFiles, settings: DetectSettings) -> None:
            settings = replace(settings, draws=False)
            with _bar("detect", "img", inputs.count) as bar:
                detect_images_on_cluster(ray, pool, model, inputs.sources, inputs.groups, results, settings, bar.update)

        yield Opened(facts.manifest, f"{facts.summary}; on {pool.actors} actors", detect)


def _detect_all(
    detector: Detector,
    inputs: Inputs,
    options: argparse.Namespace,
    results: DetectionFiles,
    settings: DetectSettings,
) -> None:
    """All images, then each video, then each stream."""
    images = [source for source in inputs.sources if not source.is_video]
    with _bar("detect", "img", len(images)) as bar:
        detect_images(detector, images, options.out, results, settings, bar.update)
    for source in inputs.sources:
        if source.is_video:
            with _bar(source.path.name, "frame") as bar:
                try:
                    detect_video(detector, source, options.out, results, settings, bar.update)
                except VideoError as error:
                    results.skip(source.path, error)
    for address, drawn in zip(inputs.streams, _stream_names(inputs), strict=True):
        name = public_name(address)
        with _bar(name, "frame") as bar:
            try:
                with LiveStream(address, options.reconnects, _warn) as stream:
                    detect_stream(detector, stream, options.out, results, settings, bar.update, drawn)
            except VideoError as error:
                results.skip(name, error)


def _say(line: str) -> None:
    tqdm.write(printable(line), file=sys.stderr)


def _warn(line: str) -> None:
    _say(f"warning: {line}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    tiles = parse_tiles(options)
    streams = [text for text in options.inputs if is_stream(text)]
    inputs = _find_inputs([Path(text) for text in options.inputs if text not in streams], streams, options)
    target = options.out / "detections.json"
    formats = [(name, path) for name in FORMATS if (path := getattr(options, name)) is not None]
    check_outputs(
        [options.model, *(one for one in options.inputs if not Path(one).is_dir()), *(s.path for s in inputs.sources)],
        {"-o": [target, *_drawn(inputs, options)], **{f"--{name}": path for name, path in formats}},
    )
    for path in [target, *(path for _, path in formats)]:
        if path.is_file() or not path.exists():  # a pipe or /dev/stdout is written to as it is
            require_writable(path)
    with ExitStack() as stack:
        opened = stack.enter_context((_on_cluster if options.cluster else _here)(options))
        print(opened.summary, flush=True)
        settings = DetectSettings(
            batch=resolve_batch([opened.manifest.inputs], options.batch, usual=BATCH),
            kept=parse_filter(options, opened.manifest.categories, options.model),
            draws=not options.json_only,
            max_pixels=max_pixels(options.max_megapixels),
            max_frames=options.max_frames,
            tiles=tiles,
        )
        head = {
            "artifact": str(options.model),
            "classes": opened.manifest.classes,
            "category_ids": opened.manifest.category_ids,
            "min_score": settings.kept.min_score,
        }
        if settings.kept.category_ids is not None:
            head["kept_category_ids"] = settings.kept.category_ids
        started = time.perf_counter()
        writers = [stack.enter_context(json_file(target, head))]
        writers += [stack.enter_context(FORMATS[name](path)) for name, path in formats]
        results = DetectionFiles(writers)
        opened.detect(inputs, results, settings)
        if results.images == 0:
            skipped = results.skipped
            raise UserError(f"none of the {len(skipped)} inputs could be read; the first: {skipped[0]['reason']}")
    seconds = time.perf_counter() - started
    if results.skipped:
        print(f"warning: {len(results.skipped)} of {inputs.count} inputs were skipped", file=sys.stderr)
    print(f"{results.images} images in {seconds:.1f} s, {results.images / seconds:.2f} images/s → {target}")
    return 0


def _find_inputs(given: Sequence[Path], streams: Sequence[str], options: argparse.Namespace) -> Inputs:
    """What the command line names. Raises UserError for inputs that are not there, or that Ray is not given."""
    parquet = [path for one in given if one.suffix.lower() == PARQUET for path in find_parquet(one)]
    holding = [path for path in parquet if holds_images(path)]
    if holding and not options.cluster:
        raise UserError(f"{holding[0]}: images inside Parquet files are read with --ray; add it, or give image files")
    named = [path for one in parquet if one not in holding for path in named_paths(one)]
    files = [*(one for one in given if one.suffix.lower() != PARQUET), *named]
    inputs = Inputs(
        find_sources(files, options.out, _say) if files else [],
        streams,
        [group for path in holding for group in row_groups(path)],
    )
    if inputs.count == 0:
        raise UserError(f"{' '.join(map(str, given))}: no image in these Parquet files; expected a row per image")
    moving = [*streams, *(str(source.path) for source in inputs.sources if source.is_video)]
    if moving and options.cluster:
        raise UserError(f"{public_name(moving[0])}: --ray takes images; detect on videos and streams without it")
    return inputs


def _stream_names(inputs: Inputs) -> list[str]:
    """The names of the streams' drawn videos, without suffix."""
    taken = {source.name.lower() for source in inputs.sources if source.is_video}
    return [unused_name(file_name(address), taken) for address in inputs.streams]


def _drawn(inputs: Inputs, options: argparse.Namespace) -> list[Path]:
    """The drawn copies that a run writes."""
    if options.json_only or options.cluster:
        return []
    drawn = [drawn_path(options.out, source.name, source.is_video) for source in inputs.sources]
    return drawn + [drawn_path(options.out, name, is_video=True) for name in _stream_names(inputs)]


def _bar(title: str, unit: str, total: int | None = None) -> tqdm:
    """A bar with the count, the rate and, where the total is known, the time left."""
    return tqdm(total=total, desc=printable(title), unit=unit, disable=not sys.stderr.isatty(), leave=False)


if __name__ == "__main__":
    run_main(main)
