"""COCO AP of a deployed model, of several side by side, or of existing results.

    python -m runtime.evaluate model.onnx --annotations val.json --images val/
    python -m runtime.evaluate fp32.onnx int8.onnx int8.engine --annotations val.json --images val/ --json metrics.json
    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --classes 1 3 5
    python -m runtime.evaluate --results r.json --annotations val.json
    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --report report.html

In parts, on several processes or machines, and merged:

    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --shard 0/2 --results-out part0.json
    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --shard 1/2 --results-out part1.json
    python -m runtime.evaluate --results part0.json part1.json --annotations val.json

A test set, whose file has no annotations, is not scored; its results are written for the server that has them:

    python -m runtime.evaluate model.onnx --annotations image_info_test.json --images test/ --results-out results.json

On the machines of a Ray cluster, in one command:

    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --ray auto

Training validates with the same code, so a model's AP before and after export is comparable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..backends.options import add_backend_arguments, backend_options
from ..batch_settings import resolve_batch
from ..bounds import Batch, Positive, argument
from ..cluster.options import add_cluster_arguments, parse_cluster
from ..command_names import program
from ..command_parser import CommandParser
from ..detection_filter import KEEP_ALL, DetectionFilter, add_filter_arguments, parse_filter
from ..detector import Detector
from ..errors import UserError
from ..files import atomic_write, require_writable, sha256_file
from ..images.limit import add_limit_argument, max_pixels
from ..machine.processor import processors
from ..manifest import Manifest
from ..model_spec import ModelSpec, model_summary, open_model, open_model_with_sha256
from ..outputs import check_outputs
from ..tta import add_tta_arguments, parse_tta, with_tta
from .classes import print_differences
from .cluster import detect_on_cluster
from .dataset import CocoDataset, add_outside_argument, load_coco_with_truth, require_usable
from .evaluation import compare_models
from .ground_truth import GroundTruth
from .metrics import score
from .report import comparison_as_json, comparison_as_table, metrics_as_json, metrics_as_table
from .result_doubts import with_doubts
from .results import Results, filter_results
from .results_files import parse_results, read_results, write_results
from .results_parquet import SUFFIX as PARQUET
from .results_parquet import load_parquet, write_parquet
from .run import DatasetRun, RunSettings, Speed, detect_dataset
from .scored import Reporter, Scored, Scoring, conditions_of
from .shards import detect_part, is_part, merge_parts, origin_of, parse_part, parse_shard, write_part

SKIPPED_NAMED = 5  # images that a warning names; the others are only counted


class _Task(NamedTuple):
    """What is evaluated, and what was asked for."""

    dataset: CocoDataset
    truth: GroundTruth
    kept: DetectionFilter
    options: argparse.Namespace
    write_report: Callable[[Scoring], None]


def main(arguments: Sequence[str] | None = None, reporter: Reporter | None = None) -> int:
    """The command line; returns the exit code, raises UserError. `reporter` writes what --report asks for."""
    options = _parse(arguments, reporter is not None)
    check_outputs(
        [*(spec.path for spec in options.models), options.annotations, options.images, *(options.results or ())],
        {"--json": options.json, "--results-out": options.results_out, "--report": options.report},
    )
    for path in (options.json, options.results_out, options.report):
        if path is not None:
            require_writable(path)
    if options.models and not options.images.is_dir():
        raise UserError(f"{options.images}: no such folder; --images expects the folder of the images")
    dataset, truth = load_coco_with_truth(options.annotations, options.images, allow_outside=options.allow_outside)
    require_usable(dataset, truth)
    kept = parse_filter(options, dataset.categories, options.annotations, dataset.written_category_ids)
    if not truth.annotated and (options.results_out is None or options.json or options.report):
        raise UserError(
            f"{options.annotations} has no annotations, as COCO's test sets: there is nothing to score; give "
            "--results-out FILE for the detections, and neither --json nor --report"
        )
    for problem in dataset.problems:
        print(f"warning: {options.annotations}: {problem}", file=sys.stderr)

    def write_report(scoring: Scoring) -> None:
        if reporter is not None and options.report is not None:
            reporter(options.report, scoring, arguments)

    task = _Task(dataset, truth, kept, options, write_report)
    if options.results is not None:
        _report(*_read_results(options, dataset), task)
    elif options.cluster is not None:
        run = _detect_on_cluster(options, dataset)
        _report(run.results, run.image_ids, run.speed, task)
    elif options.shard is not None:
        if kept != KEEP_ALL:
            raise UserError("--shard: results are filtered when the parts are scored; give the filter with --results")
        _detect_part(options, dataset)
    elif len(options.models) > 1:
        _compare(task)
    else:
        with open_model(options.models[0], **backend_options(options)) as detector:
            print(model_summary(detector, options.models[0]))
            print_differences(detector.manifest, dataset)
            run = detect_dataset(
                with_tta(detector, parse_tta(options)), dataset, _settings([detector.manifest], options)
            )
            model = detector.manifest, detector.backend.description
        _report(run.results, run.image_ids, run.speed, task, *model)
    return 0


def _parse(arguments: Sequence[str] | None, offers_report: bool) -> argparse.Namespace:
    parser = CommandParser(
        prog=program("runtime.evaluate"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models",
        nargs="*",
        type=ModelSpec.parse,
        metavar="model",
        help="deployed models (.onnx, .engine); model.onnx@openvino selects the backend of this model",
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, help="folder of the images; required with a model")
    add_outside_argument(parser)
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        help="score this COCO results file, or all parts of a run, instead of a model",
    )
    parser.add_argument("--batch", type=argument(Batch), help="images at a time (8, or what the graphs allow)")
    parser.add_argument("--limit", type=argument(Positive), metavar="N", help="only the first N images")
    parser.add_argument("--json", type=Path, help="write the metrics here (0–1; −1: nothing to measure)")
    parser.add_argument("--results-out", type=Path, help="write the detections here, as COCO results (.json, .parquet)")
    parser.set_defaults(report=None)
    if offers_report:
        parser.add_argument("--report", type=Path, help="write a report here, as runtime.report does (one HTML file)")
    parser.add_argument("--shard", metavar="I/N", help="run part I of N parts (from 0) and write it to --results-out")
    add_limit_argument(parser)
    add_filter_arguments(parser, KEEP_ALL.min_score)
    add_tta_arguments(parser)
    add_backend_arguments(parser)
    add_cluster_arguments(parser)
    options = parser.parse_args(arguments)
    options.cluster = parse_cluster(parser, options)
    if bool(options.models) == (options.results is not None):
        parser.error("give one or more models, or --results")
    if options.models and options.images is None:
        parser.error("--images is required with a model: the folder of the images")
    if options.results_out is not None and len(options.models) > 1:
        parser.error("--results-out takes the results of one model")
    if options.shard is not None and (
        len(options.models) != 1 or options.results_out is None or options.json or options.report
    ):
        parser.error(
            "--shard is for one model, with --results-out and without --json and --report: the parts are scored "
            "together"
        )
    if options.shard is not None and options.results_out.suffix.lower() == PARQUET:
        parser.error("--shard writes a part, which is JSON: name --results-out *.json")
    if options.cluster is not None and (len(options.models) != 1 or options.shard is not None):
        parser.error("--ray is for one model, without --shard")
    return options


def _settings(manifests: Sequence[Manifest], options: argparse.Namespace) -> RunSettings:
    return RunSettings(
        batch=resolve_batch([manifest.inputs for manifest in manifests], options.batch),
        limit=options.limit,
        max_pixels=max_pixels(options.max_megapixels),
        progress=sys.stderr.isatty(),
    )


def _read_results(options: argparse.Namespace, dataset: CocoDataset) -> tuple[Results, list[int], Speed | None]:
    """Results, ids of the images to score on, and speed, from a results file or from the parts of a run."""
    if any(path.suffix.lower() == PARQUET for path in options.results):
        if len(options.results) > 1:
            raise UserError("--results: a Parquet file holds all results and is given alone; parts of a run are JSON")
        results = with_doubts(load_parquet(options.results[0], dataset), dataset, options.results[0])
        return results, dataset.image_ids[: options.limit].tolist(), None
    contents = [read_results(path) for path in options.results]
    if len(contents) > 1 or is_part(contents[0]):
        parts = [(path, parse_part(content, path)) for path, content in zip(options.results, contents, strict=True)]
        run = merge_parts(parts, options.annotations, dataset.image_ids)
        return run.results, run.image_ids, run.speed
    results = with_doubts(parse_results(contents[0], options.results[0], dataset), dataset, options.results[0])
    return results, dataset.image_ids[: options.limit].tolist(), None


def _report(
    results: Results,
    image_ids: list[int],
    speed: Speed | None,
    task: _Task,
    manifest: Manifest | None = None,
    backend: str = "",
) -> None:
    """Score results; write and print what was asked for."""
    dataset, truth, kept, options, _ = task
    if speed is not None:
        _warn_of_skipped(speed)
    if options.results_out is not None:  # before scoring, which may fail
        write = write_parquet if options.results_out.suffix.lower() == PARQUET else write_results
        written = filter_results(results, kept)
        write(options.results_out, written, dataset)
        if not truth.annotated:
            what = f"nothing to score; {len(written)} detections → {options.results_out}"
            print(f"{options.annotations} has no annotations: {what}")
            return
    metrics = score(truth, results, image_ids, kept)
    for problem in metrics.problems:
        print(f"warning: {problem}", file=sys.stderr)
    try:
        if options.json is not None:
            atomic_write(options.json, metrics_as_json(metrics, speed))
    finally:  # print the metrics even if the disk is full
        print(metrics_as_table(metrics))
        if speed is not None:
            print(f"\n{speed.images} images in {speed.seconds:.1f} s, {speed.images_per_second:.2f} images/s")
    spec = options.models[0] if options.models else ModelSpec(options.results[0])
    _write_report(task, [Scored(spec.path, str(spec), results, image_ids, metrics, speed, manifest, backend)])


def _write_report(task: _Task, scored: list[Scored]) -> None:
    options = task.options
    conditions = conditions_of(options.limit, parse_tta(options))
    dataset = replace(task.dataset, max_pixels=max_pixels(options.max_megapixels))
    task.write_report(Scoring(dataset, task.truth, task.kept, tuple(scored), options.images is not None, conditions))


def _compare(task: _Task) -> None:
    """Several models on the same images, side by side."""
    dataset, truth, kept, options, _ = task
    with ExitStack() as stack:
        opened: list[tuple[ModelSpec, Detector]] = []
        for spec in options.models:
            detector = stack.enter_context(open_model(spec, **backend_options(options)))
            opened.append((spec, detector))
            print(model_summary(detector, spec))
            print_differences(detector.manifest, dataset)
        settings = _settings([detector.manifest for _, detector in opened], options)
        models = compare_models(opened, dataset, truth, settings, parse_tta(options), kept)
    _warn_of_skipped(models[0].speed)
    conditions: dict[str, Any] = {
        "batch": settings.batch,
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
    _write_report(
        task,
        [
            Scored(
                spec.path, model.artifact, model.results, model.image_ids, model.metrics, model.speed,
                model.manifest, model.description,
            )
            for spec, model in zip(options.models, models, strict=True)
        ],
    )  # fmt: skip


def _detect_part(options: argparse.Namespace, dataset: CocoDataset) -> None:
    spec, (index, count) = options.models[0], parse_shard(options.shard)
    detector, sha256 = open_model_with_sha256(spec, **backend_options(options))
    with detector:
        print(model_summary(detector, spec))
        print_differences(detector.manifest, dataset)
        settings, tta = replace(_settings([detector.manifest], options), part=(index, count)), parse_tta(options)
        origin = origin_of(sha256, sha256_file(dataset.json_path), settings, tta)
        part = detect_part(detector, str(spec), origin, dataset, settings, tta)
    write_part(options.results_out, part)
    speed = part.run.speed
    _warn_of_skipped(speed)
    print(f"part {index}/{count}: {speed.images} images in {speed.seconds:.1f} s → {options.results_out}")


def _detect_on_cluster(options: argparse.Namespace, dataset: CocoDataset) -> DatasetRun:
    with tqdm(desc="detect", unit="img", disable=not sys.stderr.isatty(), leave=False) as bar:
        return detect_on_cluster(
            options.models[0],
            dataset,
            options.cluster,
            lambda manifest: _settings([manifest], options),
            parse_tta(options),
            backend_options(options),
            bar.update,
        )


def _warn_of_skipped(speed: Speed) -> None:
    for line in speed.skipped[:SKIPPED_NAMED]:
        print(f"warning: skipped {line}", file=sys.stderr)
    if count := len(speed.skipped):
        print(f"warning: {count} of {count + speed.images} images are left out of the score", file=sys.stderr)
