"""MLPerf's four scenarios and its accuracy mode, run by its own load generator (LoadGen; extra `loadgen`).

    python -m runtime.loadgen model.onnx --scenario SingleStream --images val/ -o runs/single
    python -m runtime.loadgen model.onnx --scenario Server --images val/ -o runs/server --latency-ms 50
    python -m runtime.loadgen model.onnx --scenario Offline --images val/ -o runs/ap --accuracy --annotations val.json

LoadGen times everything from the decoded image to boxes in image pixels: resizing, network, NMS. The output folder gets
LoadGen's logs, settings.json (settings and conditions) and result.json (results). The exit code is 1 if LoadGen's
verdict is INVALID. Results are unverified and no MLPerf submission; its rules also fix model, data set and accuracy.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
import json
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tqdm import tqdm

from ..backends.options import add_backend_arguments, backend_options
from ..batch_settings import resolve_batch
from ..benchmark.images import find_images
from ..benchmark.model_info import describe_model
from ..bounds import Batch, Bounds, Milliseconds, Positive, argument
from ..coco import CocoDataset, CocoMetrics, load_coco, load_ground_truth, score
from ..coco.classes import match_dataset, print_differences
from ..coco.report import metrics_as_json, metrics_as_table
from ..coco.results import Results, join_results, results_of_image
from ..coco.results_files import write_results
from ..coco.run import no_image_readable
from ..command_names import program
from ..command_parser import CommandParser
from ..detections import Detections
from ..detector import Detector
from ..errors import run_main
from ..files import atomic_write, require_writable
from ..images import ImageError
from ..images.limit import add_limit_argument, max_pixels
from ..machine.conditions import command_line, describe_machine, describe_run, version_of
from ..machine.processor import processors
from ..manifest import Preprocess
from ..model_spec import ModelSpec, model_summary, open_model_with_sha256
from ..outputs import alone_in, check_outputs
from ..terminal import printable
from .logs import LOGS, Summary, read_responses, read_summary
from .run import import_loadgen, run_loadgen
from .settings import OFFICIAL_SECONDS, SCENARIOS, Estimate, Scenario, Target, estimate, expected_seconds, settings_for
from .sut import Samples

WARMUP_IMAGES = 32
Duration = Annotated[float, Bounds(0, 1e7, above=True)]  # s
Latency = Annotated[float, Bounds(0, 1e7, above=True)]  # ms
Rate = Annotated[float, Bounds(0, 1e9, above=True)]  # 1/s
ATTEMPTS = 3  # in Offline: a machine that was busy during the warm-up makes the run too short
SETTINGS, RESULT, RESULTS = "settings.json", "result.json", "results.json"  # in the output folder
UNVERIFIED = "unverified, and no MLPerf submission"


def check_images(dataset: CocoDataset, limit: int | None, pre: Preprocess | None) -> tuple[list[int], list[str]]:
    """Indices of the readable images, and a line per unreadable image. Raises ImageError if none is readable."""
    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))
    with ThreadPoolExecutor(processors()) as pool:
        found = pool.map(lambda index: _problem(dataset, index, pre), indices)
        hidden = not sys.stderr.isatty()
        problems = list(tqdm(found, "check images", len(indices), unit="img", disable=hidden, leave=False))
    skipped = [problem for problem in problems if problem is not None]
    readable = [index for index, problem in zip(indices, problems, strict=True) if problem is None]
    if not readable:
        raise no_image_readable(skipped)
    return readable, skipped


def score_responses(
    detector: Detector, dataset: CocoDataset, indices: Sequence[int], found: Sequence[Detections]
) -> Scored:
    """COCO metrics of the responses for these images of the data set, computed as `runtime.evaluate` does."""
    manifest = detector.manifest
    image_ids = [int(dataset.image_ids[index]) for index in indices]
    category_ids = match_dataset(manifest, dataset).category_ids
    results = join_results(
        results_of_image(image_id, detections, category_ids, manifest.thresholds.box_growth)
        for image_id, detections in zip(image_ids, found, strict=True)
    )
    return Scored(score(load_ground_truth(dataset.json_path), results, image_ids), results)


class Scored(NamedTuple):
    """Metrics of responses, and the responses as COCO results."""

    metrics: CocoMetrics
    results: Results


def summary_as_text(summary: Summary, scenario: Scenario) -> str:
    """LoadGen's verdict and main figures as text."""
    lines = [f"{scenario}, performance: {'VALID' if summary.is_valid else 'INVALID'} ({UNVERIFIED})"]
    for name, value in summary.values.items():
        # Offline has a single query, so an image's latency is only its place in the run.
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


def _problem(dataset: CocoDataset, index: int, pre: Preprocess | None) -> str | None:
    try:
        dataset.load(index, pre)
    except ImageError as error:
        return str(error)
    return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog=program("runtime.loadgen"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=ModelSpec.parse, help="a deployed model")
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="images, or folders of them")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--accuracy", action="store_true", help="accuracy mode: COCO AP of the logged responses")
    parser.add_argument("--annotations", type=Path, help="COCO annotation file; required with --accuracy")
    parser.add_argument("--limit", type=argument(Positive), metavar="N", help="accuracy mode: only the first N images")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=argument(Duration), default=10.0, help="minimum duration of a run (%(default)s)"
    )
    length.add_argument("--official", action="store_true", help="MLPerf's own minimum: 600 s, in Offline 24576 images")
    parser.add_argument("--batch", type=argument(Batch), default=8, help="largest batch (%(default)s)")
    parser.add_argument(
        "--num-images", "--pictures", type=argument(Positive), default=256, help="images held in memory (%(default)s)"
    )
    parser.add_argument(
        "--latency-ms", type=argument(Latency), default=100.0, help="Server: bound on the 99th percentile (100)"
    )
    parser.add_argument("--qps", type=argument(Rate), help="Server: queries per second (0.4 of the warm-up's)")
    parser.add_argument(
        "--wait-ms", type=argument(Milliseconds), default=0.0, help="Server: time a query waits for its batch (0)"
    )
    add_limit_argument(parser)
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if options.accuracy and (options.annotations is None or len(options.images) != 1):
        parser.error("--accuracy needs --annotations and one folder as --images")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    import_loadgen()
    check_outputs(
        [options.model.path, *options.images, options.annotations],
        {"-o": [options.out / name for name in (SETTINGS, RESULT, RESULTS, *LOGS)]},
        "choose another folder",
    )
    require_writable(options.out / SETTINGS)
    target = Target(
        scenario=options.scenario,
        is_accuracy=options.accuracy,
        seconds=OFFICIAL_SECONDS if options.official else options.seconds,
        batch=options.batch,
        is_official=options.official,
        latency_bound_s=options.latency_ms / 1000,
        queries_per_second=options.qps,
        wait_s=options.wait_ms / 1000,
        images_in_memory=options.num_images,
    )
    machine, run = (
        describe_machine(),
        describe_run(command_line(arguments, "runtime.loadgen")),
    )
    detector, sha256 = open_model_with_sha256(options.model, **backend_options(options))
    with detector:
        resolve_batch([detector.manifest.inputs], options.batch)
        print(model_summary(detector, options.model))
        conditions = {
            "loadgen": version_of("mlcommons-loadgen"),
            "timed": "from the decoded image (large JPEGs divided by their decoder) to boxes in its pixels",
            "status": UNVERIFIED,
            "run": asdict(run),
            "machine": asdict(machine),
            "artifact": asdict(describe_model(options.model.path, sha256, detector)),
        }
        with alone_in(options.out):
            return (_accuracy if options.accuracy else _performance)(detector, target, options, conditions)


def _performance(detector: Detector, target: Target, options: argparse.Namespace, conditions: dict[str, Any]) -> int:
    image_files = find_images(options.images, options.num_images, max_pixels(options.max_megapixels))
    for line in image_files.problems():
        print(printable(line), file=sys.stderr)
    conditions = conditions | {"images": asdict(image_files.summary())}
    plan = _plan(detector, list(image_files.sizes_hw), target, options.out, conditions)
    for attempt in range(ATTEMPTS):
        _run(plan)
        summary = read_summary(options.out)
        if target.scenario != "Offline" or summary.values.get("Min duration satisfied") != "NO":
            break
        rate = summary.number("Samples per second") or 0.0
        if attempt + 1 < ATTEMPTS:
            print(f"Offline: the run was too short at {rate:.1f} images/s; repeating it with more images", flush=True)
            plan = replace(plan, found=replace(plan.found, images_per_second=max(plan.found.images_per_second, rate)))
    try:
        atomic_write(options.out / RESULT, json.dumps(asdict(summary), indent=2) + "\n")
    finally:  # print the figures even if the disk is full
        print(summary_as_text(summary, target.scenario))
    return 0 if summary.is_valid else 1


def _accuracy(detector: Detector, target: Target, options: argparse.Namespace, conditions: dict[str, Any]) -> int:
    dataset = load_coco(options.annotations, options.images[0])
    dataset = replace(dataset, max_pixels=max_pixels(options.max_megapixels))
    print_differences(detector.manifest, dataset)
    indices, skipped = check_images(dataset, options.limit, detector.load_preprocess)
    for line in skipped:
        print(f"warning: skipped {printable(line)}", file=sys.stderr)
    image_files = {"annotations": str(options.annotations), "count": len(indices), "skipped": len(skipped)}
    paths = [dataset.path(index) for index in indices]
    _run(_plan(detector, paths, target, options.out, conditions | {"images": image_files}))
    found = read_responses(options.out, len(indices))
    metrics, results = score_responses(detector, dataset, indices, found)
    try:
        write_results(options.out / RESULTS, results, dataset)
        atomic_write(options.out / RESULT, metrics_as_json(metrics))
    finally:
        print(f"{target.scenario}, accuracy, from LoadGen's log of responses ({UNVERIFIED})")
        print(metrics_as_table(metrics))
    return 0


@dataclass(frozen=True)
class Plan:
    """A run of LoadGen that has been prepared, and its conditions."""

    detector: Detector
    paths: list[Path]
    target: Target
    found: Estimate
    folder: Path
    conditions: dict[str, Any]


def _plan(detector: Detector, paths: list[Path], target: Target, folder: Path, conditions: dict[str, Any]) -> Plan:
    """Warm up, and estimate the speed from it."""
    samples = Samples(paths[:WARMUP_IMAGES], detector.load_preprocess)
    samples.load(range(len(samples)))
    found = estimate(detector, [samples[index] for index in range(len(samples))], target)
    return Plan(detector, paths, target, found, folder, conditions)


def _run(plan: Plan) -> None:
    """Write settings.json, then run LoadGen."""
    settings = settings_for(plan.target, plan.found, import_loadgen())
    content = {"settings": settings, "target": asdict(plan.target), "estimate": asdict(plan.found), **plan.conditions}
    atomic_write(plan.folder / SETTINGS, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if not plan.target.is_accuracy:
        print(f"{plan.target.scenario}: about {expected_seconds(settings, plan.found):.0f} s …", flush=True)
    run_loadgen(plan.detector, plan.paths, plan.target, settings, plan.found, plan.folder)


if __name__ == "__main__":
    run_main(main)
