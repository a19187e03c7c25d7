"""COCO's twelve metrics of results, checked distrustfully: `scoring.py` computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..detections import Detections
from . import scoring
from .format import CocoError, Problems, annotation_problem, categories, is_finite, read_coco_json, read_json
from .results import Results, results_of_image, results_of_rows, take
from .scoring import GroundTruth


@dataclass(frozen=True)
class CocoMetrics:
    """Values in 0–1; −1 where the data set has no object to measure it on (COCO's own convention)."""

    values: dict[str, float]  # under scoring.METRIC_NAMES
    per_class: dict[str, float]  # AP by class name
    images: int  # how many were scored
    problems: tuple[str, ...] = ()  # results that were left out


def to_results(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int],
    box_growth: tuple[float, float, float, float] | None = None,
) -> list[dict[str, Any]]:
    """Detections of one image as entries of a COCO results file; see `results.results_of_image`."""
    return list(results_of_image(image_id, detections, category_ids, box_growth))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Entries of a COCO results file. Raises CocoError; `evaluate` checks the entries themselves."""
    return results_list(read_json(path, "results"), path)


def results_list(results: Any, path: Path) -> list[dict[str, Any]]:
    """As `read_results`, of a file's parsed content."""
    if not isinstance(results, list):
        raise CocoError(f"{path}: not COCO results; expected a list of {{image_id, category_id, bbox, score}}")
    return results


def score(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    results: Results | Iterable[dict[str, Any]],
    image_ids: Sequence[int] | None = None,
) -> CocoMetrics:
    """Score box results against annotations (a file, its parsed content, or the truth in it).

    On all images or those of `image_ids`. Unusable annotations are left out, as in `load_coco`; boxes are otherwise
    taken as they stand. No results at all give 0. Results of categories the annotations don't have are left out and
    named in `problems`. Raises CocoError for results that are malformed or of unknown images.
    """
    if isinstance(annotations, Path | str):
        annotations = read_coco_json(Path(annotations))
    truth = parse_ground_truth(annotations) if isinstance(annotations, dict) else annotations
    problems = Problems()
    rows = _known(results, truth, problems)
    scores = scoring.precision_recall(truth, rows, image_ids)
    per_class = [scoring.mean_of_measured(scores.precision[:, :, k, 0]) for k in range(len(truth.classes))]
    return CocoMetrics(
        values=scoring.metric_values(scores),
        per_class=dict(zip(truth.classes, per_class, strict=True)),
        images=len(truth.image_ids) if image_ids is None else len({int(value) for value in image_ids}),
        problems=problems.lines(),
    )


def parse_ground_truth(content: dict[str, Any]) -> GroundTruth:
    """The usable annotations of a parsed annotation file."""
    image_ids = sorted({image["id"] for image in content["images"]})
    category_ids, classes = categories(content, Problems())
    image_row = {image_id: row for row, image_id in enumerate(image_ids)}
    category_row = {category_id: row for row, category_id in enumerate(category_ids)}
    usable = [a for a in content["annotations"] if annotation_problem(a, image_row, category_row) is None]
    images = np.array([image_row[a["image_id"]] for a in usable], np.int64)
    labels = np.array([category_row[a["category_id"]] for a in usable], np.int64)
    order = np.lexsort((labels, images))  # stable: annotations of an image and category stay in the file's order
    return GroundTruth(
        image_ids=np.array(image_ids, np.int64),
        category_ids=np.array(category_ids, np.int64),
        classes=classes,
        images=images[order],
        categories=labels[order],
        boxes=np.array([a["bbox"] for a in usable], np.float64).reshape(-1, 4)[order],
        areas=np.array([_area(a) for a in usable], np.float64)[order],
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in usable], bool)[order],
    )


def _area(annotation: dict[str, Any]) -> float:
    """The area that decides between small, medium and large: the object's own where it is known, else the box's."""
    area = annotation.get("area")
    if is_finite(area):
        return float(area)
    return annotation["bbox"][2] * annotation["bbox"][3]


def _known(results: Results | Iterable[dict[str, Any]], truth: GroundTruth, problems: Problems) -> Results:
    """The results in arrays, those of the truth's categories; others are named in `problems`."""
    if not isinstance(results, Results):
        ids = set(truth.image_ids.tolist())
        return results_of_rows(checked_results(results, ids, set(truth.category_ids.tolist()), problems))
    is_known = np.isin(results.category_ids, truth.category_ids)
    for category_id in results.category_ids[~is_known].tolist():
        problems.add(_OTHER, f"category {category_id}")
    if len(results) and not is_known.any():
        raise _all_others(len(results))
    return results if is_known.all() else take(results, is_known)


def checked_results(
    results: Iterable[Any], image_ids: set[int], category_ids: set[int], problems: Problems
) -> list[dict[str, Any]]:
    """The results as annotations of a COCO object; those of unknown categories are left out and named in `problems`.

    Raises CocoError for results that are malformed or of unknown images.
    """
    rows, others = [], 0
    for number, result in enumerate(results, start=1):
        problem = _result_problem(result, image_ids)
        if problem is not None:
            raise CocoError(
                f"result {number} of {len(results) if isinstance(results, Sequence) else '?'} {problem}; results must "
                "be those of these annotations, as {image_id, category_id, bbox [x, y, width, height], score}"
            )
        if result["category_id"] not in category_ids:
            others += 1
            problems.add(_OTHER, f"category {result['category_id']}")
            continue
        box = result["bbox"]
        rows.append(
            {
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "bbox": box,
                "score": result["score"],
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    if others and not rows:
        raise _all_others(others)
    return rows


def _result_problem(result: Any, image_ids: set[int]) -> str | None:
    if not isinstance(result, dict):
        return "is not an object"
    if not isinstance(result.get("category_id"), int):
        return "has no integer category_id"
    if not isinstance(result.get("image_id"), int) or result["image_id"] not in image_ids:
        return f"has image_id {result.get('image_id')!r}, which the annotations lack"
    box, score = result.get("bbox"), result.get("score")
    if not isinstance(box, list) or len(box) != 4:
        return f"has bbox {box!r}"
    if not all(is_finite(value) for value in (*box, score)):
        return f"has bbox {box!r} and score {score!r}, expected finite numbers"
    return None


_OTHER = "result of a category that the annotations lack"


def _all_others(count: int) -> CocoError:
    return CocoError(f"all {count} results are of categories that the annotations lack; are the category ids theirs?")
