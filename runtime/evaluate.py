"""COCO AP of a deployed model, or of results that exist already.

    python -m runtime.evaluate model.onnx --annotations val.json --images val/
    python -m runtime.evaluate model.onnx --annotations val.json --images val/ --json figures.json --results-out r.json
    python -m runtime.evaluate --results r.json --annotations val.json

Training validates with `evaluate_detector` too, so that a model's AP before and after export comes from the same lines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .backends.options import add_backend_arguments, backend_options
from .coco import FIGURE_NAMES, CocoDataset, CocoError, CocoFigures, evaluate, load_coco, read_results, to_results
from .detector import Detector, Detects
from .errors import UserError, run_main
from .files import atomic_write, require_writable
from .images import MAX_PIXELS, ImageError
from .manifest import Manifest
from .multiscale import add_arguments, as_asked
from .prefetch import prefetch

SKIPPED_NAMED = 5


@dataclass(frozen=True)
class Speed:
    """How a run over a data set went."""

    images: int  # that were read and scored
    seconds: float  # wall time, reading included
    seconds_detecting: float  # of it in the detector: preprocessing, network, postprocessing
    skipped: tuple[str, ...]  # one line per picture that could not be read

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


class Evaluation(NamedTuple):
    figures: CocoFigures
    results: list[dict[str, Any]]  # as in a COCO results file
    speed: Speed


class Detected(NamedTuple):
    results: list[dict[str, Any]]
    image_ids: list[int]  # of the pictures that were read
    speed: Speed


def evaluate_detector(
    detector: Detects,
    dataset: CocoDataset,
    annotations: Path | str | dict[str, Any] | None = None,
    batch: int = 8,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
) -> Evaluation:
    """Detect on the data set's pictures and score the results.

    `annotations` (a file or its parsed content) default to the data set's file. Pictures that cannot be read are left
    out of the score and named in `speed.skipped`. `limit` takes the first so many pictures. Raises CocoError where
    model and data set have other classes, ImageError where no picture could be read.
    """
    detected = detect_dataset(detector, dataset, batch, progress, max_pixels, limit)
    source = dataset.json_path if annotations is None else annotations
    return Evaluation(evaluate(source, detected.results, detected.image_ids), detected.results, detected.speed)


def detect_dataset(
    detector: Detects,
    dataset: CocoDataset,
    batch: int = 8,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> Detected:
    """Results of the detector on the data set's pictures; see `evaluate_detector`.

    A few threads read the next two batches while one is detected on; more pictures are never in memory. `part` (i, n)
    takes every n-th batch from the i-th on: the n parts together are the whole, each picture in the same company.
    """
    require_same_classes(detector.manifest, dataset)
    batches = plan_batches(detector, dataset, batch, limit)[part[0] :: part[1]]
    images = prefetch(lambda index: _read(dataset, index, max_pixels), _flat(batches), ahead=2 * batch)
    results: list[dict[str, Any]] = []
    image_ids: list[int] = []
    skipped: list[str] = []
    started, detecting = time.perf_counter(), 0.0
    with tqdm(total=sum(map(len, batches)), desc="detect", unit="img", disable=not progress, leave=False) as bar:
        for members in batches:
            read = [(index, next(images)) for index in members]
            skipped += [str(image) for _, image in read if isinstance(image, ImageError)]
            good = [(index, image) for index, image in read if isinstance(image, np.ndarray)]
            detecting -= time.perf_counter()
            found = detector.detect([image for _, image in good])
            detecting += time.perf_counter()
            for (index, _), detections in zip(good, found, strict=True):
                image_ids.append(int(dataset.image_ids[index]))
                manifest = detector.manifest
                growth = manifest.thresholds.box_growth
                results += to_results(image_ids[-1], detections, manifest.category_ids, growth)
            bar.update(len(members))
    if skipped and not image_ids and part[1] == 1:
        raise none_readable(skipped)
    return Detected(results, image_ids, Speed(len(image_ids), time.perf_counter() - started, detecting, tuple(skipped)))


def none_readable(skipped: Sequence[str]) -> ImageError:
    """The error of a data set in which no picture can be read."""
    return ImageError(f"none of the {len(skipped)} pictures could be read; the first: {skipped[0]}")


def plan_batches(detector: Detects, dataset: CocoDataset, batch: int, limit: int | None = None) -> list[list[int]]:
    """Indices of the pictures in batches of one canvas size each, so that none is padded for its neighbours' sake."""
    if batch < 1:
        raise UserError(f"batch is {batch}, expected at least 1")
    groups: dict[tuple[int, int], list[int]] = {}
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        groups.setdefault(detector.canvas_hw(dataset.size_hw(index)), []).append(index)
    return [
        members[first : first + batch]
        for _, members in sorted(groups.items())
        for first in range(0, len(members), batch)
    ]


def require_same_classes(manifest: Manifest, dataset: CocoDataset) -> None:
    """Raise CocoError where a category id means another class to the model than to the data set, or none is shared."""
    known = dict(zip(dataset.category_ids, dataset.classes, strict=True))
    ours = dict(zip(manifest.category_ids, manifest.classes, strict=True))
    for category_id, name in ours.items():
        if known.get(category_id, name) != name:
            raise CocoError(
                f"{dataset.json_path}: category {category_id} is {known[category_id]!r} there, {name!r} in the model; "
                "score the model on annotations with the categories that it was trained with"
            )
    if not ours.keys() & known.keys():
        raise CocoError(
            f"{dataset.json_path}: no category of the model occurs there (model: {_some(ours)}; annotations: "
            f"{_some(known)}); score the model on annotations with the categories that it was trained with"
        )


def figures_as_json(figures: CocoFigures, speed: Speed | None = None) -> str:
    """The twelve figures in 0–1 (−1: nothing to measure) under COCO's names, AP per class, and how the run went."""
    content: dict[str, Any] = {**figures.figures, "per_class": figures.per_class, "images": figures.images}
    if speed is not None:
        content |= {"images_per_second": round(speed.images_per_second, 3), "skipped": len(speed.skipped)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def figures_as_table(figures: CocoFigures) -> str:
    """The twelve figures and AP per class, of 100, as text."""
    width = max(map(len, figures.per_class), default=0)
    lines = [
        f"COCO box figures, of 100, on {figures.images} images (– nothing to measure)",
        " ".join(f"{name:>6}" for name in FIGURE_NAMES),
        " ".join(f"{_of_100(figures.figures[name]):>6}" for name in FIGURE_NAMES),
        "",
        "AP per class",
        *(f"  {name:<{width}} {_of_100(value):>6}" for name, value in figures.per_class.items()),
    ]
    return "\n".join(lines)


def describe(detector: Detector, path: Path) -> str:
    manifest = detector.manifest
    what = f"{manifest.recipe}, {len(manifest.classes)} classes, {manifest.precision}"
    return f"{path}: {what}; {detector.backend.description}"


def _read(dataset: CocoDataset, index: int, max_pixels: int) -> np.ndarray | ImageError:
    try:
        return dataset.image(index, max_pixels)
    except ImageError as error:
        return error


def _flat(batches: Sequence[Sequence[int]]) -> Iterator[int]:
    return (index for members in batches for index in members)


def _of_100(value: float) -> str:
    return "–" if value < 0 else f"{100 * value:.1f}"


def _some(categories: dict[int, str]) -> str:
    names = [f"{category_id} {name}" for category_id, name in list(categories.items())[:3]]
    return ", ".join(names) + (" …" if len(categories) > 3 else "")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("artifact", nargs="?", type=Path, help="a deployed model (.onnx)")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--images", type=Path, help="folder of the pictures; needed with a model")
    parser.add_argument("--results", type=Path, help="score this COCO results json instead of a model")
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time (%(default)s)")
    parser.add_argument("--limit", type=int, help="only the first so many pictures")
    parser.add_argument("--json", type=Path, help="write the figures here (0–1; −1 where there is nothing to measure)")
    parser.add_argument("--results-out", type=Path, help="write the detections here, as COCO results")
    parser.add_argument("--max-megapixels", type=float, default=MAX_PIXELS / 1e6, help="larger pictures are refused")
    add_arguments(parser)
    add_backend_arguments(parser)
    options = parser.parse_args(arguments)
    if (options.artifact is None) == (options.results is None):
        parser.error("give a model or --results, one of them")
    if options.artifact is not None and options.images is None:
        parser.error("--images is needed with a model: the folder of the pictures")
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    options = _parse(arguments)
    for path in (options.json, options.results_out):
        if path is not None:
            require_writable(path)
    speed = None
    if options.results is not None:
        image_ids = None
        results = read_results(options.results)
        if options.limit is not None:
            image_ids = load_coco(options.annotations, ".").image_ids[: options.limit].tolist()
    else:
        results, image_ids, speed = _detect(options)
    if options.results_out is not None:  # before scoring, which may fail
        atomic_write(options.results_out, json.dumps(results))
    figures = evaluate(options.annotations, results, image_ids)
    for problem in figures.problems:
        print(f"warning: left out: {problem}", file=sys.stderr)
    try:
        if options.json is not None:
            atomic_write(options.json, figures_as_json(figures, speed))
    finally:  # a full disk must not cost the figures, nor a closed pipe the file
        print(figures_as_table(figures))
        if speed is not None:
            print(f"\n{speed.images} images in {speed.seconds:.1f} s, {speed.images_per_second:.2f} images/s")
    return 0


def _detect(options: argparse.Namespace) -> Detected:
    if not options.images.is_dir():
        raise UserError(f"{options.images}: no such folder; --images expects the folder of the pictures")
    dataset = load_coco(options.annotations, options.images)
    for problem in dataset.problems:
        print(f"warning: {options.annotations}: {problem}", file=sys.stderr)
    with Detector(options.artifact, **backend_options(options)) as detector:
        print(describe(detector, options.artifact))
        detected = detect_dataset(
            as_asked(detector, options),
            dataset,
            options.batch,
            sys.stderr.isatty(),
            int(options.max_megapixels * 1e6),
            options.limit,
        )
    for line in detected.speed.skipped[:SKIPPED_NAMED]:
        print(f"warning: skipped {line}", file=sys.stderr)
    if count := len(detected.speed.skipped):
        print(
            f"warning: {count} of {count + detected.speed.images} pictures are left out of the score", file=sys.stderr
        )
    return detected


if __name__ == "__main__":
    run_main(main)
