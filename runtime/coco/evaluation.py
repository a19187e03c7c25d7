"""Evaluating detectors: detect on a data set, then score what was found with COCO's metrics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from ..batch_settings import resolve_batch
from ..detection_filter import KEEP_ALL, DetectionFilter, resolve_categories
from ..detector import Detector
from ..detector_protocol import DetectorProtocol
from ..errors import UserError
from ..images import MAX_PIXELS
from ..model_spec import ModelSpec, model_path, open_model
from ..tta import NO_TTA, TtaSettings, with_tta
from .classes import match_dataset
from .dataset import CocoDataset, load_coco_with_truth, require_usable
from .ground_truth import GroundTruth, load_ground_truth
from .metrics import CocoMetrics, score
from .report import ComparedModel
from .results import Results, filter_results
from .run import USUAL, RunSettings, Speed, detect_dataset, detect_with_all


class Evaluation(NamedTuple):
    """What an evaluation gives."""

    metrics: CocoMetrics
    results: Results  # the detections, in COCO's terms
    speed: Speed


def evaluate(
    model: str | os.PathLike[str] | ModelSpec | DetectorProtocol[Any],
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    batch: int | None = None,
    limit: int | None = None,
    classes: Sequence[int | str] = (),
    min_score: float = 0.0,
    tta: TtaSettings = NO_TTA,
    max_pixels: int = MAX_PIXELS,
    allow_outside: bool = False,
    progress: bool = False,
    **backend_options: Any,
) -> Evaluation:
    """COCO metrics of a deployed model on a data set.

        from runtime import evaluate

        evaluation = evaluate("model.onnx", "val.json", "val/")
        evaluation.metrics.values["AP"]  # 0–1

    Args:
        model: the path of a deployed model (.onnx, .engine), the address of a served one
            (triton://host:port/model), or an open detector, which stays open.
        annotations: COCO annotation file.
        images: folder that the file names of the annotations are relative to.
        batch: images at a time; by default 8, or the nearest batch that the graph takes.
        limit: evaluate on the first `limit` images of the annotations only.
        classes: COCO category ids or names; results and annotations of other categories do not count.
        min_score: detections below this score do not count.
        tta: multi-scale testing; by default each image is seen once.
        max_pixels: larger images are skipped.
        allow_outside: read images whose file names lead out of the folder of the images.
        progress: show a progress bar.
        backend_options: fields of `BackendOptions`, such as `backend="openvino"`; only with a path.

    The model's classes are matched by name with the annotations' categories; what they do not have in common is named
    in `metrics.problems`. Images that cannot be read are named in `speed.skipped` and left out of the score. Raises
    CocoError for unusable annotations or where no class is matched, BackendError where the model cannot be run,
    ImageError where no image can be read, UserError for an unknown class.

    """
    if not (isinstance(model, str | os.PathLike | ModelSpec) or hasattr(model, "detect_prepared")):
        raise UserError(
            f"{type(model).__name__} is no model; expected the path of a file named *.onnx or *.engine, or a Detector"
        )
    dataset, truth = load_coco_with_truth(annotations, images, allow_outside=allow_outside)
    require_usable(dataset, truth)
    written = dataset.written_category_ids
    kept = DetectionFilter(min_score, resolve_categories(classes, dataset.categories, annotations, written))
    with ExitStack() as stack:
        if isinstance(model, str | os.PathLike):
            model = ModelSpec(model_path(model))
        if isinstance(model, ModelSpec):
            model = stack.enter_context(open_model(model, **backend_options))
        elif backend_options:
            raise TypeError(f"{', '.join(backend_options)}: a detector that is open already takes no backend options")
        size = resolve_batch([model.manifest.inputs], batch)
        if isinstance(model, Detector):
            model = with_tta(model, tta)
        elif tta != NO_TTA:
            raise TypeError(f"tta: a {type(model).__name__} takes none; give a Detector, or the path of a model")
        settings = RunSettings(size, limit, max_pixels, progress=progress)
        return score_detector(model, dataset, truth, settings, kept)


def score_detector(
    detector: DetectorProtocol[Any],
    dataset: CocoDataset,
    truth: GroundTruth | None = None,
    settings: RunSettings = USUAL,
    kept: DetectionFilter = KEEP_ALL,
) -> Evaluation:
    """As `evaluate`, of an open detector and data set. `truth` defaults to that of the data set's file."""
    run = detect_dataset(detector, dataset, settings)
    truth = load_ground_truth(dataset.json_path) if truth is None else truth
    metrics = score(truth, run.results, run.image_ids, kept)
    differences = match_dataset(detector.manifest, dataset).differences
    metrics = replace(metrics, problems=(*differences, *metrics.problems))
    return Evaluation(metrics, filter_results(run.results, kept), run.speed)


def compare_models(
    models: Sequence[tuple[ModelSpec, Detector]],
    dataset: CocoDataset,
    truth: GroundTruth,
    settings: RunSettings,
    tta: TtaSettings = NO_TTA,
    kept: DetectionFilter = KEEP_ALL,
) -> list[ComparedModel]:
    """Metrics and speeds of several models on the same images. Raises as `detect_with_all`."""
    runs = detect_with_all([with_tta(detector, tta) for _, detector in models], dataset, settings)
    return [
        ComparedModel(
            str(spec),
            detector.manifest,
            detector.backend.description,
            score(truth, run.results, run.image_ids, kept),
            run.speed,
            run.results,
            run.image_ids,
        )
        for (spec, detector), run in zip(models, runs, strict=True)
    ]
