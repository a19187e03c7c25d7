"""Write one HTML file that shows what detectors find and get wrong. It opens in a browser without a network.

    python -m runtime.report model.onnx --annotations val.json --images val/ -o report.html
    python -m runtime.report fp32.onnx int8.onnx --annotations val.json --images val/ -o report.html   # what changed
    python -m runtime.report --results r.json --annotations val.json -o report.html
    python -m runtime.report --results before=a.json after=b.json --annotations val.json --images val/ -o report.html

The metrics are those of `runtime.evaluate`. The training run is found beside the model where one of its checkpoints is
the model's; --train names another folder. --card writes a model card with the same facts.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ..analysis.intervals import RESAMPLES
from ..backends.options import add_backend_arguments, backend_options
from ..batch_settings import resolve_batch
from ..bounds import Batch, Bounds, Fraction, Positive, argument
from ..coco import CocoDataset, GroundTruth, Results, load_coco_with_truth, load_ground_truth, score
from ..coco.classes import print_differences
from ..coco.dataset import add_outside_argument, require_usable
from ..coco.result_doubts import with_doubts
from ..coco.results_files import parse_results, read_results
from ..coco.results_parquet import SUFFIX as PARQUET
from ..coco.results_parquet import load_parquet
from ..coco.run import RunSettings, detect_with_all
from ..coco.scored import Scored, Scoring, conditions_of
from ..coco.shards import is_part
from ..command_names import program
from ..command_parser import CommandParser
from ..detection_filter import DetectionFilter, resolve_categories
from ..errors import UserError, run_main
from ..files import require_writable
from ..images.limit import add_limit_argument, max_pixels
from ..machine.conditions import command_line, describe_machine
from ..model_spec import ModelSpec, model_summary, open_model
from ..outputs import check_outputs
from ..training_log import LOG
from ..tta import NO_TTA, add_tta_arguments, parse_tta, with_tta
from .collect import Wishes
from .content import THUMBNAIL_BYTES, SpeedFacts
from .speed import measure_stages
from .training import CHECKPOINTS, PLACES
from .write import require_libraries, write_report

Resamples = Annotated[int, Bounds(0, 10_000)]
ThumbnailMb = Annotated[float, Bounds(0, 1000)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    check_outputs(_inputs(options), {"--out": options.out, "--card": options.card})
    for path in (options.out, options.card):
        if path is not None:
            require_writable(path)
    require_libraries()
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"{options.images}: no such folder; --images expects the folder of the images")
    dataset, truth = load_coco_with_truth(options.annotations, options.images, allow_outside=options.allow_outside)
    dataset = replace(dataset, max_pixels=max_pixels(options.max_megapixels))
    require_usable(dataset, truth)
    if not truth.annotated:
        raise UserError(
            f"{options.annotations} has no annotations, as COCO's test sets: there is nothing to report on; give "
            "annotations"
        )
    training = None if options.train_annotations is None else load_ground_truth(options.train_annotations)
    categories = resolve_categories(
        options.classes, dataset.categories, options.annotations, dataset.written_category_ids
    )
    kept = DetectionFilter(category_ids=categories)
    for problem in dataset.problems:
        print(f"warning: {options.annotations}: {problem}", file=sys.stderr)
    scored, speeds = _run_models(options, dataset, truth, kept)
    image_ids = scored[0].image_ids if scored else dataset.image_ids[: options.limit].tolist()
    for name, path in options.results or ():
        found = _read_results(path, dataset)
        scored.append(Scored(path, name, found, image_ids, score(truth, found, image_ids, kept)))
    wishes = Wishes(
        command=command_line(arguments, "runtime.report"),
        min_score=options.score,
        resamples=options.resamples,
        thumbnail_bytes=round(options.size_mb * 1e6),
        run=options.train,
        training=training,
        speeds=speeds,
    )
    if options.title is not None:
        wishes = replace(wishes, title=options.title)
    conditions = conditions_of(options.limit, parse_tta(options))
    scoring = Scoring(dataset, truth, kept, tuple(scored), options.images is not None, conditions)
    write_report(options.out, scoring, wishes, options.card)
    print(f"report → {options.out}" + ("" if options.card is None else f", model card → {options.card}"))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog=program("runtime.report"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", type=ModelSpec.parse, metavar="model", help="deployed models; m.onnx@cpu names a backend"
    )
    parser.add_argument(
        "--results", nargs="+", type=_named, metavar="[NAME=]FILE", help="COCO results (.json, .parquet), each beside"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, help="folder of the images; required with a model")
    add_outside_argument(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="write the report here (.html)")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the first model's model card here (.md)")
    parser.add_argument("--title", help="title of the report")
    parser.add_argument("--train", type=Path, metavar="RUN", help="folder of the training run")
    parser.add_argument("--train-annotations", type=Path, metavar="FILE", help="the training set, for its counts")
    parser.add_argument(
        "--score",
        type=argument(Fraction),
        help="lowest score in confusion, changes and images, 0–1 (where F1 is highest); the metrics take all",
    )
    parser.add_argument("--classes", nargs="+", default=[], metavar="ID", help="COCO category ids, or names, to keep")
    parser.add_argument("--batch", type=argument(Batch), help="images at a time (8, or what the graphs allow)")
    parser.add_argument("--limit", type=argument(Positive), metavar="N", help="only the first N images")
    parser.add_argument(
        "--resamples",
        type=argument(Resamples),
        default=RESAMPLES,
        metavar="N",
        help="resamples of the images for the intervals; 0: no intervals (%(default)s)",
    )
    parser.add_argument(
        "--size-mb",
        type=argument(ThumbnailMb),
        default=THUMBNAIL_BYTES / 1e6,
        metavar="MB",
        help="most that the thumbnails of the images may take (%(default)s)",
    )
    add_limit_argument(parser)
    add_tta_arguments(parser)
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if not options.models and not options.results:
        parser.error("give one or more models, or --results")
    if options.models and options.images is None:
        parser.error("--images is required with a model: the folder of the images")
    return options


def _named(text: str) -> tuple[str, Path]:
    """A results file and its name: NAME=FILE, or FILE, which may have = in its name if it is there."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and name and path and not Path(text).exists() else (text, Path(text))


def _inputs(options: argparse.Namespace) -> Iterator[Path | str | None]:
    """All that the run may read."""
    yield from (spec.path for spec in options.models)
    yield from (path for _, path in options.results or ())
    yield from (options.annotations, options.images, options.train_annotations)
    places = [spec.path.parent / place for spec in options.models if isinstance(spec.path, Path) for place in PLACES]
    for folder in places if options.train is None else [options.train]:
        yield from (path for name in (LOG, *CHECKPOINTS) if (path := folder / name).is_file())


def _run_models(
    options: argparse.Namespace, dataset: CocoDataset, truth: GroundTruth, kept: DetectionFilter
) -> tuple[list[Scored], list[SpeedFacts]]:
    """What the models find, and their times by stage."""
    if not options.models:
        return [], []
    machine = describe_machine()
    with ExitStack() as stack:
        detectors = []
        for spec in options.models:
            detector = stack.enter_context(open_model(spec, **backend_options(options)))
            detectors.append(detector)
            print(model_summary(detector, spec))
            print_differences(detector.manifest, dataset)
        batch = resolve_batch([detector.manifest.inputs for detector in detectors], options.batch)
        settings = RunSettings(batch, options.limit, dataset.max_pixels, progress=sys.stderr.isatty())
        tta = parse_tta(options)
        runs = detect_with_all([with_tta(detector, tta) for detector in detectors], dataset, settings)
        # Several views of an image have no stages of their own: the page then has the evaluation's own times.
        speeds = [] if tta != NO_TTA else measure_stages(detectors, dataset, runs[0].image_ids, batch, machine)
    for line in runs[0].speed.skipped:
        print(f"warning: skipped {line}", file=sys.stderr)
    scored = [
        Scored(
            spec.path,
            str(spec),
            run.results,
            run.image_ids,
            score(truth, run.results, run.image_ids, kept),
            run.speed,
            detector.manifest,
            detector.backend.description,
        )
        for spec, run, detector in zip(options.models, runs, detectors, strict=True)
    ]
    return scored, speeds


def _read_results(path: Path, dataset: CocoDataset) -> Results:
    if path.suffix.lower() == PARQUET:
        return with_doubts(load_parquet(path, dataset), dataset, path)
    content = read_results(path)
    if is_part(content):
        raise UserError(
            f"{path} is a part of an evaluation; merge all parts first: python -m runtime.evaluate --results PARTS "
            "--annotations FILE --results-out r.json"
        )
    return with_doubts(parse_results(content, path, dataset), dataset, path)


if __name__ == "__main__":
    run_main(main)
