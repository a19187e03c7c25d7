"""Makes a report's content of an evaluation: metrics with intervals, curves, errors, changes, images, conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ..analysis import intervals
from ..analysis.calibration import calibration
from ..analysis.changes import Changes, find_changes
from ..analysis.confusion import confusion_matrix
from ..analysis.counts import ASPECTS, SIZES, count_objects
from ..analysis.curves import F1Curve, F1Curves, f1_curves, precision_recall
from ..analysis.errors import Errors, find_errors
from ..coco import GroundTruth, Problems, Results
from ..coco.classes import match_dataset
from ..coco.results import filter_results, known_results
from ..coco.scored import Scored, Scoring
from ..files import sha256_file
from ..machine.conditions import describe_run
from . import content as page
from .examples import example_images
from .speed import speed_of_evaluation
from .training import find_run, read_run

SKIPPED_NAMED = 5  # images that a model's problems name; the others are only counted
WITHOUT_F1 = 0.5  # the score threshold where nothing is found, so that no threshold is best


@dataclass(frozen=True)
class Wishes:
    """What a person wants of a report beside the evaluation."""

    title: str = "What the detector finds, and what it gets wrong"
    command: str = ""  # that makes the report
    # The lowest score of what the confusion matrix, the changes and the images show. None: the evaluation's, or else
    # the threshold with the highest F1 of the first model.
    min_score: float | None = None
    resamples: int = intervals.RESAMPLES  # of the bootstrap; 0: no intervals
    thumbnail_bytes: int = page.THUMBNAIL_BYTES
    run: Path | None = None  # the folder of the training run; None: looked for beside the models
    training: GroundTruth | None = None  # the training set, for its counts
    speeds: Sequence[page.SpeedFacts] = ()  # by model, of those that ran; empty: what the evaluation measured


def collect(scoring: Scoring, wishes: Wishes = Wishes()) -> page.ReportContent:
    """The content of a report on an evaluation.

    The metrics are the evaluation's own. Every other figure is of the same images, classes and detections. Raises
    UserError for a training run that cannot be read.
    """
    run = describe_run(wishes.command)
    truth = scoring.truth.restricted_to(scoring.kept.category_ids)
    image_ids = scoring.scored[0].image_ids
    results = [_counted(one.results, truth, scoring) for one in scoring.scored]
    f1 = [f1_curves(truth, found, image_ids) for found in results]
    min_score, reason = _threshold(scoring, wishes, f1[0].total)
    errors = [find_errors(truth, found, image_ids) for found in results]
    changes = [find_changes(truth, results[0], found, image_ids, min_score=min_score) for found in results[1:]]
    measured = intervals.bootstrap(truth, results, image_ids, resamples=wishes.resamples)
    names = short_names([one.name for one in scoring.scored])
    speeds = [*wishes.speeds, *[None] * (len(names) - len(wishes.speeds))]
    models = [
        _model(name, one, scoring, truth, found, curve, own, wrong, change, speed, min_score)
        for name, one, found, curve, own, wrong, change, speed in zip(
            names, scoring.scored, results, f1, measured, errors, [None, *changes], speeds, strict=True
        )
    ]
    notes = [f"Confusion, changes and images show detections with a score of {min_score:g} or more: {reason}."]
    conditions = tuple(f"{name}: {value}" for name, value in scoring.conditions.items())
    return page.ReportContent(
        title=wishes.title,
        made=run.date,
        toolkit=f"atss-toolkit {run.toolkit_version}",
        command=wishes.command,
        min_score=min_score,
        resamples=wishes.resamples,
        data=_data(scoring, truth, image_ids, wishes.training),
        models=tuple(models),
        images=example_images(
            scoring.dataset, truth, image_ids, results, errors, changes, min_score, scoring.has_images
        ),
        runs=tuple(_runs(scoring, wishes)),
        max_pixels=scoring.dataset.max_pixels,
        thumbnail_bytes=wishes.thumbnail_bytes,
        notes=(*notes, *conditions),
        conditions=conditions,
    )


def short_names(names: Sequence[str]) -> list[str]:
    """Distinct names: the last part of a path where that is enough, the whole where not, and else with a number."""
    found: list[str] = []
    for name in names:
        short = Path(name).name or name
        chosen = short if [Path(other).name for other in names].count(short) == 1 else name
        number, made = 2, chosen
        while made in found:
            made, number = f"{chosen} #{number}", number + 1
        found.append(made)
    return found


def _counted(results: Results, truth: GroundTruth, scoring: Scoring) -> Results:
    """The results that the evaluation scored."""
    return known_results(filter_results(results, scoring.kept), truth.image_ids, truth.category_ids, Problems())


def _threshold(scoring: Scoring, wishes: Wishes, f1: F1Curve) -> tuple[float, str]:
    """The lowest score that is shown, and why."""
    if wishes.min_score is not None:
        return wishes.min_score, "as asked for"
    if scoring.kept.min_score > 0:
        return scoring.kept.min_score, "as the evaluation kept"
    if f1.best_score >= 0:
        return f1.best_score, "where F1 of the first model is highest on these images"
    why = "the first model finds no object" if f1.best_f1 >= 0 else "there is no object to find"
    return WITHOUT_F1, f"{why}, so that no threshold is best"


def _model(
    name: str,
    one: Scored,
    scoring: Scoring,
    truth: GroundTruth,
    found: Results,
    f1: F1Curves,
    measured: intervals.ModelIntervals,
    errors: Errors,
    changes: Changes | None,
    speed: page.SpeedFacts | None,
    min_score: float,
) -> page.ModelContent:
    """One model's part of the report; `changes` are None for the first."""
    curves = precision_recall(truth, found, one.image_ids)
    scores = calibration(truth, found, one.image_ids)
    confusion = confusion_matrix(truth, found, one.image_ids, min_score=min_score)
    if speed is None and one.speed is not None:
        speed = speed_of_evaluation(one.speed, one.backend)
    return page.ModelContent(
        name=name,
        file=one.name,
        facts=_facts(one),
        metrics=_intervals(measured.metrics, measured.metrics, one.metrics.values),
        per_class=_intervals(measured.per_class, measured.per_class, one.metrics.per_class),
        detections=int(np.isin(found.image_ids, one.image_ids).sum()),
        difference=None if measured.difference is None else _intervals(measured.difference, measured.metrics),
        per_class_difference=(
            None
            if measured.per_class_difference is None
            else _intervals(measured.per_class_difference, measured.per_class)
        ),
        curves=(
            page.PrecisionCurves(tuple(curves.ious.tolist()), curves.precision)
            if (curves.precision >= 0).any()  # of no class otherwise, and their mean would be 0
            else None
        ),
        f1=_score_curve(f1.total),
        f1_per_class={key: made for key, curve in f1.per_class.items() if (made := _score_curve(curve)) is not None},
        reliability=(
            None
            if scores.error < 0
            else page.Reliability(
                scores.edges, scores.hits, scores.misses, scores.confidence, scores.precision, scores.error
            )
        ),
        confusion=page.Confusion(confusion.counts, confusion.iou),
        errors=_errors(errors),
        changes=None if changes is None else _changes(changes),
        speed=speed,
        manifest=None if one.manifest is None else dataclasses.asdict(one.manifest),
        problems=_problems(one, scoring),
    )


def _intervals(
    found: Mapping[str, intervals.Interval],
    metrics: Mapping[str, intervals.Interval],
    values: Mapping[str, float] | None = None,
) -> dict[str, page.Interval]:
    """Intervals for the page, of metrics whose exact `values` are known, or of differences between measured ones.

    `metrics` tells what was measured, and on enough images for an interval.
    """
    made = {}
    for name, one in found.items():
        bounds = (one.low, one.high) if metrics[name].low >= 0 else (None, None)
        if values is not None:
            made[name] = page.Interval(values[name], *bounds)
        elif metrics[name].value >= 0:
            made[name] = page.Interval(one.value, *bounds)
    return made


def _score_curve(curve: F1Curve) -> page.ScoreCurve | None:
    """None where nothing is found or there is nothing to find."""
    if curve.best_score < 0:
        return None
    return page.ScoreCurve(
        curve.scores, curve.precision, curve.recall, curve.f1, float(curve.best_score), float(curve.best_f1)
    )


def _errors(errors: Errors) -> dict[page.ErrorKind, page.KindOfError]:
    if errors.ap < 0:
        return {}
    return {
        kind: page.KindOfError(
            errors.counts[kind], errors.worth[kind], errors.worth50[kind], errors.per_class[kind].tolist()
        )
        for kind in page.ERROR_KINDS
    }


def _changes(changes: Changes) -> page.Changes:
    return page.Changes(
        counts=cast(Mapping[page.ChangeKind, int], changes.counts),
        per_class={kind: changes.per_class[kind].tolist() for kind in page.CHANGE_KINDS},
        images=changes.changed_images,
        unchanged=changes.unchanged,
        moved_iou=changes.moved_iou,
        score_shift=changes.score_shift,
    )


def _facts(one: Scored) -> dict[str, str]:
    """What is known of a model or results file; a manifest's own words come first."""
    facts: dict[str, str] = {}
    if (manifest := one.manifest) is not None:
        facts |= {
            "precision": manifest.precision,
            "recipe": manifest.recipe,
            "classes": str(len(manifest.classes)),
            "input": manifest.inputs.summary(),
            "checkpoint SHA-256": manifest.checkpoint_sha256,
            "made with": f"atss-toolkit {manifest.toolkit_version}",
        }
        if manifest.ap is not None:
            facts["AP in the manifest"] = f"{100 * manifest.ap:.1f}"
    if one.backend:
        facts["backend"] = one.backend
    if isinstance(one.source, Path) and one.source.is_file():
        kind = "results file" if one.manifest is None else "file"  # a card must not take results for the model
        facts[f"{kind} size"] = f"{one.source.stat().st_size / 1e6:.1f} MB"
        facts[f"{kind} SHA-256"] = sha256_file(one.source)
    return facts


def _problems(one: Scored, scoring: Scoring) -> tuple[str, ...]:
    lines = [] if one.manifest is None else [*match_dataset(one.manifest, scoring.dataset).differences]
    lines += one.metrics.problems
    if one.speed is not None and (skipped := one.speed.skipped):
        lines += [f"skipped {line}" for line in skipped[:SKIPPED_NAMED]]
        lines.append(f"{len(skipped)} of {len(skipped) + one.speed.images} images are left out of the score")
    return tuple(dict.fromkeys(lines))


def _data(
    scoring: Scoring, truth: GroundTruth, image_ids: Sequence[int], training: GroundTruth | None
) -> page.DataContent:
    counts = count_objects(truth, image_ids)
    before = None if training is None else count_objects(training).of_classes(truth.classes)
    tables = (
        ("class", truth.classes, lambda one: one.objects),
        ("size (COCO)", SIZES, lambda one: one.sizes.sum(axis=0)),
        ("aspect ratio (width : height)", ASPECTS, lambda one: one.aspects.sum(axis=0)),
    )
    return page.DataContent(
        annotations=str(scoring.dataset.json_path),
        images=len(image_ids),
        objects=int(counts.objects.sum()),
        classes=truth.classes,
        counts=tuple(
            page.CountTable(title, groups, get(counts), None if before is None else get(before))
            for title, groups, get in tables
        ),
        problems=scoring.dataset.problems,
    )


def _runs(scoring: Scoring, wishes: Wishes) -> list[page.RunContent]:
    """The training run that was asked for, or those that made the models."""
    made = [(one.source, one.manifest.checkpoint_sha256) for one in scoring.scored if one.manifest is not None]
    if wishes.run is not None:
        return [read_run(wishes.run, made[0][1] if made else None)]
    found: dict[Path, str] = {}
    for source, sha256 in made:
        if isinstance(source, Path) and (folder := find_run(source, sha256)) is not None:
            found.setdefault(folder, sha256)
    return [read_run(folder, sha256) for folder, sha256 in found.items()]
