"""COCO AP of a deployed model, of several side by side, or of results that exist already.

    python -m runtime.evaluate model.onnx --annotations val.json --images val/
    python -m runtime.evaluate fp32.onnx int8.onnx int8.engine --annotations val.json --images val/ --json figures.json
    python -m runtime.evaluate --results r.json --annotations val.json

In parts, on several processes or machines, and merged:

    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --shard 0/2 --results-out part0.json
    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --shard 1/2 --results-out part1.json
    python -m runtime.evaluate --results part0.json part1.json --annotations val.json

Training validates with `score_detector` too, so that a model's AP before and after export comes from the same lines.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ..backends.options import add_backend_arguments, backend_options
from ..detector import Detector, DetectorProtocol, resolve_batch
from ..errors import UserError, run_main
from ..files import atomic_write, require_writable, sha256_file
from ..images import MAX_PIXELS
from ..model_spec import ModelSpec, model_summary, open_model, open_model_with_sha256
from ..pipeline import processors
from ..tta import add_tta_arguments, with_tta
from .dataset import CocoDataset, load_coco, load_coco_with_truth
from .format import read_json
from .metrics import CocoMetrics, results_list, score
from .report import ComparedModel, comparison_as_json, comparison_as_table, metrics_as_json, metrics_as_table
from .results import Results, write_results
from .run import Speed, detect_dataset, detect_with_all, require_same_classes
from .scoring import GroundTruth
from .shards import VERSION, Origin, Part, PartHead, is_part, merge, parse_part, parse_shard, write_part

SKIPPED_NAMED = 5

__all__ = ["Evaluation", "main", "require_same_classes", "score_detector"]


class Evaluation(NamedTuple):
    metrics: CocoMetrics
    results: Sequence[dict[str, Any]]  # as in a COCO results file
    speed: Speed


def score_detector(
    detector: DetectorProtocol[Any],
    dataset: CocoDataset,
    annotations: Path | str | dict[str, Any] | GroundTruth | None = None,
    batch: int = 8,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
) -> Evaluation:
    """Detect on the data set's images and score the results.

    `annotations` (a file, its parsed content or its truth) default to the data set's file. Images that cannot be read
    are left out of the score and named in `speed.skipped`. `limit` takes the first so many images. Raises CocoError
    where model and data set have other classes, ImageError where no image could be read.
    """
    detected = detect_dataset(detector, dataset, batch, progress, max_pixels, limit)
    source = dataset.json_path if annotations is None else annotations
    return Evaluation(score(source, detected.results, detected.image_ids), detected.results, detected.speed)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models",
        nargs="*",
        type=ModelSpec.parse,
        metavar="model",
        help="deployed models (.onnx, .engine); m.onnx@openvino: with that backend",
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--images", type=Path, help="folder of the images; needed with a model")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        help="score this COCO results json, or all parts of a run, instead of a model",
    )
    parser.add_argument("--batch", type=int, help="images at a time (8, or what the graphs allow)")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--json", type=Path, help="write the metrics here (0–1; −1 where there is nothing to measure)")
    parser.add_argument("--results-out", type=Path, help="write the detections here, as COCO results")
    parser.add_argument("--shard", metavar="I/N", help="do the I-th of N parts (from 0) and write it to --results-out")
    parser.add_argument("--max-megapixels", type=float, default=MAX_PIXELS / 1e6, help="larger images are refused")
    add_tta_arguments(parser)
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if bool(options.models) == (options.results is not None):
        parser.error("give a model, several, or --results")
    if options.models and options.images is None:
        parser.error("--images is needed with a model: the folder of the images")
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    if options.results_out is not None and len(options.models) > 1:
        parser.error("--results-out takes the results of one model")
    if options.shard is not None and (len(options.models) != 1 or options.results_out is None or options.json):
        parser.error("--shard is for one model, with --results-out and without --json: the parts are scored together")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    for path in (options.json, options.results_out):
        if path is not None:
            require_writable(path)
    if options.models and not options.images.is_dir():
        raise UserError(f"{options.images}: no such folder; --images expects the folder of the images")
    if options.shard is not None:
        _detect_part(options)
    elif len(options.models) > 1:
        _compare(options)
    elif options.models:
        dataset, truth = _load(options)
        with open_model(options.models[0], **backend_options(options)) as detector:
            print(model_summary(detector, options.models[0]))
            detected = detect_dataset(with_tta(detector, options), dataset, *_settings([detector], options))
        _report(detected.results, detected.image_ids, detected.speed, truth, options)
    else:
        _score_results(options)
    return 0


def _load(options: argparse.Namespace) -> tuple[CocoDataset, GroundTruth]:
    dataset, truth = load_coco_with_truth(options.annotations, options.images)
    for problem in dataset.problems:
        print(f"warning: {options.annotations}: {problem}", file=sys.stderr)
    return dataset, truth


def _settings(detectors: Sequence[Detector], options: argparse.Namespace) -> tuple[int, bool, int, int | None]:
    """The arguments of `detect_dataset` after the data set: batch, progress, max_pixels, limit."""
    batch = resolve_batch([detector.manifest.inputs for detector in detectors], options.batch)
    return batch, sys.stderr.isatty(), int(options.max_megapixels * 1e6), options.limit


def _score_results(options: argparse.Namespace) -> None:
    """Score a results file, or the parts of a run."""
    contents = [read_json(path, "results") for path in options.results]
    if len(contents) > 1 or is_part(contents[0]):
        parts = [(path, parse_part(content, path)) for path, content in zip(options.results, contents, strict=True)]
        dataset, truth = load_coco_with_truth(options.annotations, ".")
        detected = merge(parts, options.annotations, dataset.image_ids)
        _report(detected.results, detected.image_ids, detected.speed, truth, options)
        return
    image_ids = None
    results = results_list(contents[0], options.results[0])
    if options.limit is not None:
        image_ids = load_coco(options.annotations, ".").image_ids[: options.limit].tolist()
    _report(results, image_ids, None, options.annotations, options)


def _report(
    results: Results | list[dict[str, Any]],
    image_ids: list[int] | None,
    speed: Speed | None,
    truth: GroundTruth | Path,
    options: argparse.Namespace,
) -> None:
    """Write and print what was asked for."""
    if speed is not None:
        _warn_of_skipped(speed)
    if options.results_out is not None:  # before scoring, which may fail
        write_results(options.results_out, results)
    metrics = score(truth, results, image_ids)
    for problem in metrics.problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    try:
        if options.json is not None:
            atomic_write(options.json, metrics_as_json(metrics, speed))
    finally:  # a full disk must not cost the metrics, nor a closed pipe the file
        print(metrics_as_table(metrics))
        if speed is not None:
            print(f"\n{speed.images} images in {speed.seconds:.1f} s, {speed.images_per_second:.2f} images/s")


def _compare(options: argparse.Namespace) -> None:
    """Several models on the same images, side by side."""
    dataset, truth = _load(options)
    with ExitStack() as stack:
        detectors = []
        for given in options.models:
            detectors.append(stack.enter_context(open_model(given, **backend_options(options))))
            print(model_summary(detectors[-1], given))
        settings = _settings(detectors, options)
        runs = detect_with_all([with_tta(detector, options) for detector in detectors], dataset, *settings)
        models = [
            ComparedModel(
                str(given),
                detector.manifest,
                detector.backend.description,
                score(truth, run.results, run.image_ids),
                run.speed,
            )
            for given, detector, run in zip(options.models, detectors, runs, strict=True)
        ]
    _warn_of_skipped(models[0].speed)
    conditions = {
        "batch": settings[0],
        "batches": len(models[0].speed.seconds_per_image),
        "order": "one model at a time, batch by batch in turn; each canvas' first batch was run once before",
        "processors": processors(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "annotations": str(options.annotations),
    }
    try:
        if options.json is not None:
            atomic_write(options.json, comparison_as_json(models, conditions))
    finally:
        print(comparison_as_table(models))


def _detect_part(options: argparse.Namespace) -> None:
    index, count = parse_shard(options.shard)
    dataset, _ = _load(options)
    given = options.models[0]
    detector, sha256 = open_model_with_sha256(given, **backend_options(options))
    with detector:
        print(model_summary(detector, given))
        settings = _settings([detector], options)
        detected = detect_dataset(with_tta(detector, options), dataset, *settings, part=(index, count))
        origin = Origin(
            artifact_sha256=sha256,
            annotations_sha256=sha256_file(options.annotations),
            batch=settings[0],
            limit=options.limit,
            scales=tuple(options.scales or ()),
            flip=options.flip,
            vote=options.vote,
            max_pixels=settings[2],
        )
        speed, backend = detected.speed, detector.backend.description
        head = PartHead(
            version=VERSION,
            index=index,
            count=count,
            artifact=str(given),
            backend=backend,
            origin=origin,
            seconds=speed.seconds,
            seconds_network=speed.seconds_network,
            skipped=speed.skipped,
            image_ids=tuple(detected.image_ids),
        )
    write_part(options.results_out, Part(head, detected))
    _warn_of_skipped(detected.speed)
    print(f"part {index}/{count}: {speed.images} images in {speed.seconds:.1f} s → {options.results_out}")


def _warn_of_skipped(speed: Speed) -> None:
    for line in speed.skipped[:SKIPPED_NAMED]:
        print(f"warning: skipped {line}", file=sys.stderr)
    if count := len(speed.skipped):
        print(f"warning: {count} of {count + speed.images} images are left out of the score", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
