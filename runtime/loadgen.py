"""MLPerf's four scenarios through its own load generator (LoadGen; extra `loadgen`), and its accuracy mode.

    python -m runtime.loadgen model.onnx --scenario SingleStream --images val/ -o runs/single
    python -m runtime.loadgen model.onnx --scenario Server --images val/ -o runs/server --latency-ms 50
    python -m runtime.loadgen model.onnx --scenario Offline --images val/ -o runs/ap --accuracy --annotations val.json

Timed is everything from the decoded picture to boxes in its own pixels: resizing, network, NMS. LoadGen's own logs lie
in the output folder, with settings.json (what was asked for, conditions) and result.json (what came out) beside them.
Exit code 1 where LoadGen's verdict is INVALID. Results are unverified and no MLPerf submission: the rules for one also
fix the model, the data set and the accuracy.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from .backends.options import add_backend_arguments, backend_options
from .coco import CocoDataset, CocoFigures, evaluate, load_coco, to_results
from .conditions import command_line, describe_artifact, describe_machine, describe_run
from .detections import Detections
from .detector import Detector
from .errors import run_main
from .evaluate import figures_as_table, none_readable, require_same_classes
from .files import atomic_write, require_writable
from .images import ImageError
from .loadgen_logs import Summary, read_responses, read_summary
from .loadgen_run import import_loadgen, run_loadgen
from .loadgen_settings import (
    OFFICIAL_SECONDS,
    SCENARIOS,
    Scenario,
    Target,
    estimate,
    expected_seconds,
    settings_for,
)
from .loadgen_sut import Samples
from .pictures import find_pictures
from .prefetch import prefetch

WARMUP_PICTURES = 32
UNVERIFIED = "unverified, and no MLPerf submission"


def check_pictures(dataset: CocoDataset, limit: int | None, max_ahead: int = 8) -> tuple[list[int], list[str]]:
    """Indices of the pictures that can be read, and a line for each that cannot."""
    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))
    bar = tqdm(indices, desc="check pictures", unit="img", disable=not sys.stderr.isatty(), leave=False)
    problems = list(prefetch(lambda index: _problem(dataset, index), bar, max_ahead))
    skipped = [problem for problem in problems if problem is not None]
    readable = [index for index, problem in zip(indices, problems, strict=True) if problem is None]
    if not readable:
        raise none_readable(skipped)
    return readable, skipped


def score(detector: Detector, dataset: CocoDataset, indices: Sequence[int], found: Sequence[Detections]) -> Scored:
    """COCO's figures of the responses for those pictures of the data set, just as `runtime.evaluate` has them."""
    manifest = detector.manifest
    image_ids = [int(dataset.image_ids[index]) for index in indices]
    results = [
        result
        for image_id, detections in zip(image_ids, found, strict=True)
        for result in to_results(image_id, detections, manifest.category_ids, manifest.thresholds.box_growth)
    ]
    return Scored(evaluate(dataset.json_path, results, image_ids), results)


class Scored(NamedTuple):
    figures: CocoFigures
    results: list[dict[str, Any]]  # as in a COCO results file


def summary_as_text(summary: Summary, scenario: Scenario) -> str:
    """LoadGen's verdict and main figures."""
    lines = [f"{scenario}, performance: {'VALID' if summary.is_valid else 'INVALID'} ({UNVERIFIED})"]
    for name, value in summary.values.items():
        # The latency of Offline's pictures is the time since the one query that they all belong to.
        if "latency" in name and name.endswith("(ns)") and name != "target_latency (ns)" and scenario != "Offline":
            lines.append(f"  {name.removesuffix('(ns)').strip():<36}{float(value) / 1e6:10.2f} ms")
        elif "per second" in name or name.startswith("QPS"):
            lines.append(f"  {name:<36}{float(value):10.2f}")
        elif name.endswith("satisfied"):
            lines.append(f"  {name:<36}{value:>10}")
    lines += [f"  {_in_ms(line)}" for line in (*summary.advice, *summary.errors)]
    return "\n".join(lines)


def _in_ms(line: str) -> str:
    return re.sub(r"(estimate: )(\d+)$", lambda match: f"{match[1]}{int(match[2]) / 1e6:.2f} ms", line)


def _problem(dataset: CocoDataset, index: int) -> str | None:
    try:
        dataset.image(index)
    except ImageError as error:
        return str(error)
    return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.loadgen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, help="a deployed model")
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="pictures, or folders of them")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for LoadGen's logs")
    parser.add_argument("--accuracy", action="store_true", help="accuracy mode: COCO AP of LoadGen's log of responses")
    parser.add_argument("--annotations", type=Path, help="COCO json; needed with --accuracy")
    parser.add_argument("--limit", type=int, help="accuracy mode: only the first so many pictures")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=10.0, help="a run lasts at least so long (%(default)s)")
    length.add_argument("--official", action="store_true", help="as MLPerf has it: 600 s; Offline 24576 pictures")
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time, at most (%(default)s)")
    parser.add_argument("--pictures", type=int, default=256, help="so many are held in memory at once (%(default)s)")
    parser.add_argument("--latency-ms", type=float, default=100.0, help="Server: bound of the 99th percentile (100)")
    parser.add_argument("--qps", type=float, help="Server: queries per second (else half of what a warm-up gave)")
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if options.accuracy and (options.annotations is None or len(options.images) != 1):
        parser.error("--accuracy needs --annotations and one folder as --images")
    for name in ("limit", "batch", "pictures", "latency_ms", "qps", "seconds"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    import_loadgen()
    require_writable(options.out / "settings.json")
    target = Target(
        scenario=options.scenario,
        is_accuracy=options.accuracy,
        seconds=OFFICIAL_SECONDS if options.official else options.seconds,
        batch=options.batch,
        is_official=options.official,
        latency_bound_s=options.latency_ms / 1000,
        queries_per_second=options.qps,
        pictures_in_memory=options.pictures,
    )
    command = command_line(arguments, "runtime.loadgen")
    with Detector(options.artifact, **backend_options(options)) as detector:
        detector.batch(options.batch)
        if options.accuracy:
            return _accuracy(detector, target, options, command)
        return _performance(detector, target, options, command)


def _performance(detector: Detector, target: Target, options: argparse.Namespace, command: str) -> int:
    pictures = find_pictures(options.images, options.pictures)
    for line in pictures.skipped:
        print(f"warning: skipped {line}", file=sys.stderr)
    _run(detector, list(pictures.sizes_hw), target, options, command, asdict(pictures.described()))
    summary = read_summary(options.out)
    try:
        atomic_write(options.out / "result.json", json.dumps(asdict(summary), indent=2) + "\n")
    finally:  # a full disk must not cost the figures, nor a closed pipe the file
        print(summary_as_text(summary, target.scenario))
    return 0 if summary.is_valid else 1


def _accuracy(detector: Detector, target: Target, options: argparse.Namespace, command: str) -> int:
    dataset = load_coco(options.annotations, options.images[0])
    require_same_classes(detector.manifest, dataset)
    indices, skipped = check_pictures(dataset, options.limit)
    for line in skipped:
        print(f"warning: skipped {line}", file=sys.stderr)
    pictures = {"annotations": str(options.annotations), "count": len(indices), "skipped": len(skipped)}
    _run(detector, [dataset.path(index) for index in indices], target, options, command, pictures)
    found = read_responses(options.out, len(indices))
    figures, results = score(detector, dataset, indices, found)
    content = {**figures.figures, "per_class": figures.per_class, "images": figures.images, "skipped": len(skipped)}
    try:
        atomic_write(options.out / "results.json", json.dumps(results))
        atomic_write(options.out / "result.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    finally:
        print(f"{target.scenario}, accuracy, from LoadGen's log of responses ({UNVERIFIED})")
        print(figures_as_table(figures))
    return 0


def _run(
    detector: Detector,
    paths: list[Path],
    target: Target,
    options: argparse.Namespace,
    command: str,
    pictures: dict[str, Any],
) -> None:
    """Warm up, write down what will be run, and run it."""
    machine, run = describe_machine(), describe_run(command)  # the load before ours
    print(
        f"{options.artifact}: {detector.manifest.recipe}, {detector.manifest.precision}; {detector.backend.description}"
    )
    samples = Samples(paths[:WARMUP_PICTURES])
    samples.load(range(len(samples)))
    found = estimate(detector, [samples[index] for index in range(len(samples))], target)
    library = import_loadgen()
    settings = settings_for(target, found, library)
    content = {
        "loadgen": metadata.version("mlcommons-loadgen"),
        "settings": settings,
        "target": asdict(target),
        "estimate": asdict(found),
        "timed": "from the decoded picture to boxes in its pixels",
        "status": UNVERIFIED,
        "run": asdict(run),
        "machine": asdict(machine),
        "artifact": asdict(describe_artifact(options.artifact, detector)),
        "pictures": pictures,
    }
    atomic_write(options.out / "settings.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if not target.is_accuracy:
        print(f"{target.scenario}: about {expected_seconds(settings, found):.0f} s …", flush=True)
    run_loadgen(detector, paths, target, settings, found, options.out)


if __name__ == "__main__":
    run_main(main)
