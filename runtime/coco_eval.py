"""COCO's twelve figures, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_format import CocoError, Problems, annotation_problem, categories, is_finite, read_coco_json, read_json
from .detections import Detections

# In the order of pycocotools' `stats`.
FIGURE_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class CocoFigures:
    """Values in 0–1; −1 where the data set has no object to measure it on (COCO's own convention)."""

    figures: dict[str, float]  # under FIGURE_NAMES
    per_class: dict[str, float]  # AP by class name
    images: int  # how many were scored
    problems: tuple[str, ...] = ()  # results that were left out


def to_results(
    image_id: int,
    detections: Detections,
    category_ids: Sequence[int],
    box_growth: tuple[float, float, float, float] | None = None,
) -> list[dict[str, Any]]:
    """Detections of one image (xyxy, image pixels) as entries of a COCO results file (x, y, width, height).

    `box_growth` (`Thresholds.box_growth`) is added to boxes for the area that they cover.
    Rounded (0.001 pixel, 1e-6 score), so that scoring the written file gives the figures that were printed.
    """
    boxes = detections.boxes.astype(np.float64) + (box_growth or 0.0)
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [round(value, 3) for value in box],
            "score": round(score, 6),
        }
        for label, box, score in zip(
            detections.classes.tolist(), boxes_xywh.tolist(), detections.scores.astype(np.float64).tolist(), strict=True
        )
    ]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Entries of a COCO results file. Raises CocoError; `evaluate` checks the entries themselves."""
    results = read_json(path, "results")
    if not isinstance(results, list):
        raise CocoError(f"{path}: not COCO results; expected a list of {{image_id, category_id, bbox, score}}")
    return results


def evaluate(
    annotations: Path | str | dict[str, Any], results: Iterable[dict[str, Any]], image_ids: Sequence[int] | None = None
) -> CocoFigures:
    """Score box results against annotations (a file, or its parsed content), on all images or those of `image_ids`.

    Unusable annotations are left out, as in `load_coco`; boxes are otherwise taken as they stand. No results at all
    give 0. Results of categories the annotations don't have are left out and named in `problems`. Raises CocoError for
    results that are malformed or of unknown images.
    """
    content = annotations if isinstance(annotations, dict) else read_coco_json(Path(annotations))
    known_images = {image["id"] for image in content["images"]}
    wanted = known_images if image_ids is None else {int(value) for value in image_ids}
    category_ids = {category["id"] for category in content["categories"]}
    problems = Problems()
    rows = checked_results(results, known_images, category_ids, problems)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        truth = _coco(content, _usable(content, known_images, category_ids))
        scorer = COCOeval(truth, _coco(content, rows), "bbox")
        scorer.params.imgIds = sorted(wanted)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return CocoFigures(
        figures={name: float(value) for name, value in zip(FIGURE_NAMES, scorer.stats, strict=True)},
        per_class=_per_class(scorer, content),
        images=len(wanted),
        problems=problems.lines(),
    )


def _usable(content: dict[str, Any], image_ids: set[int], category_ids: set[int]) -> list[dict[str, Any]]:
    return [
        {**annotation, "iscrowd": int(bool(annotation.get("iscrowd", 0))), "area": _area(annotation)}
        for annotation in content["annotations"]
        if annotation_problem(annotation, image_ids, category_ids) is None
    ]


def _area(annotation: dict[str, Any]) -> float:
    """The area that decides between small, medium and large: the object's own where it is known, else the box's."""
    area = annotation.get("area")
    if is_finite(area):
        return float(area)
    return annotation["bbox"][2] * annotation["bbox"][3]


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
            problems.add("result of a category that the annotations lack", f"category {result['category_id']}")
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
        raise CocoError(
            f"all {others} results are of categories that the annotations lack; are the category ids theirs?"
        )
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


def _coco(content: dict[str, Any], rows: list[dict[str, Any]]) -> COCO:
    """A COCO object of these rows, numbered anew in place: pycocotools takes a match with id 0 for no match."""
    for number, row in enumerate(rows, start=1):
        row["id"] = number
    coco = COCO()
    coco.dataset = {"images": content["images"], "categories": content["categories"], "annotations": rows}
    coco.createIndex()
    return coco


def _per_class(scorer: COCOeval, content: dict[str, Any]) -> dict[str, float]:
    precision = scorer.eval["precision"]  # [IoU thresholds, recalls, classes by rising id, areas, limits]
    values = {}
    for column, name in enumerate(categories(content, Problems())[1]):
        measured = precision[:, :, column, 0, -1]
        measured = measured[measured > -1]
        values[name] = float(measured.mean()) if measured.size else -1.0
    return values
