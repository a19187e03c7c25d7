"""TIDE as a slow loop over images and detections, from the paper and COCO's rules; and random data for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np


def random_data(seed: int, images: int = 25, crowds: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results with every kind of error; all scores differ, and no image has 100 results."""
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {
        "images": [{"id": 3 * i + 2, "height": 400, "width": 400, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": c, "name": f"c{c}"} for c in (4, 9, 17)],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []
    for image in content["images"]:
        for _ in range(int(rng.integers(0, 7))):
            box = [*rng.uniform(0, 250, 2), *rng.uniform(30, 120, 2)]
            label = int(rng.choice([4, 9, 17]))
            crowd = int(crowds and rng.random() < 0.15)
            entry = {"id": len(content["annotations"]) + 1, "image_id": image["id"], "category_id": label}
            content["annotations"].append(
                {**entry, "bbox": [float(v) for v in box], "area": float(box[2] * box[3]), "iscrowd": crowd}
            )
            for _ in range(int(rng.integers(0, 5))):
                size = np.array([box[2], box[3], box[2], box[3]])
                near = np.array(box) + rng.normal(0, float(rng.choice([0.05, 0.25])), 4) * size
                other = int(rng.choice([4, 9, 17])) if rng.random() < 0.3 else label
                bbox = [float(v) for v in (*near[:2], *near[2:].clip(5))]
                results.append({"image_id": image["id"], "category_id": other, "bbox": bbox})
        for _ in range(int(rng.integers(0, 4))):
            bbox = [float(v) for v in (*rng.uniform(0, 300, 2), *rng.uniform(20, 90, 2))]
            results.append({"image_id": image["id"], "category_id": int(rng.choice([4, 9, 17])), "bbox": bbox})
    for result, place in zip(results, rng.permutation(len(results)).tolist(), strict=True):
        result["score"] = (place + 1) / (len(results) + 1)
    return content, results


def iou(a: list[float], b: list[float], crowd: bool = False) -> float:
    """IoU of x, y, width, height; with a crowd the part of `a` inside."""
    width = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return width * height / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - width * height)


RECALLS = tuple(np.linspace(0, 1, 101).tolist())  # COCO's; n / 100 differs from some of them in the last bit


def average_precision(rows: list[tuple[float, bool]], count: int, recalls: Sequence[float]) -> float:
    """Of (score, hit): the mean over 101 recalls of the best precision at that recall or beyond."""
    if count == 0:
        return -1.0
    points, hits = [], 0
    for place, (_, hit) in enumerate(sorted(rows, key=lambda row: -row[0]), start=1):
        hits += hit
        points.append((hits / count, hits / place))
    best = [max((p for r, p in points if r >= level), default=0.0) for level in recalls]
    return sum(best) / 101


def tide(
    content: dict[str, Any],
    results: list[dict[str, Any]],
    threshold: float = 0.5,
    recalls: Sequence[float] = RECALLS,
) -> dict[str, Any]:
    """Kinds by result, ids of missed annotations, AP and what mending each kind gains."""
    truth = [a for a in content["annotations"] if not a["iscrowd"]]
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    kinds, target, hit_by = {}, {}, {}
    ignored = set()
    order = sorted(range(len(results)), key=lambda i: -results[i]["score"])
    for i in order:
        r = results[i]
        here = [a for a in truth if a["image_id"] == r["image_id"]]
        own = [(iou(r["bbox"], a["bbox"]), a) for a in here if a["category_id"] == r["category_id"]]
        free = [pair for pair in own if pair[0] >= threshold and pair[1]["id"] not in hit_by]
        if free:
            hit_by[max(free, key=lambda pair: pair[0])[1]["id"]] = i
            kinds[i] = "correct"
            continue
        place = (r["image_id"], r["category_id"])
        around = [a for a in crowds if (a["image_id"], a["category_id"]) == place]
        if any(iou(r["bbox"], a["bbox"], crowd=True) >= threshold for a in around):
            ignored.add(i)
        other = [(iou(r["bbox"], a["bbox"]), a) for a in here if a["category_id"] != r["category_id"]]
        best_own = max(own, key=lambda pair: pair[0], default=(0.0, None))
        best_other = max(other, key=lambda pair: pair[0], default=(0.0, None))
        if 0.1 <= best_own[0] < threshold:
            kinds[i], target[i] = "localisation", best_own[1]
        elif best_other[0] >= threshold:
            kinds[i], target[i] = "class", best_other[1]
        elif best_own[0] >= threshold:
            kinds[i] = "duplicate"
        else:
            kinds[i] = "both" if best_other[0] >= 0.1 else "background"
    mends: dict[int, int] = {}
    for i in order:
        if i in target and target[i]["id"] not in hit_by:
            mends.setdefault(target[i]["id"], i)
    missed = [a for a in truth if a["id"] not in hit_by and a["id"] not in mends]

    def score(mended: str | None) -> float:
        lists: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        for i, r in enumerate(results):
            if mended in ("class", "localisation") and kinds[i] == mended:
                if target[i]["id"] in mends and mends[target[i]["id"]] == i:
                    lists[target[i]["category_id"]].append((r["score"], True))
            elif i not in ignored and kinds[i] != mended and (mended != "false positives" or kinds[i] == "correct"):
                lists[r["category_id"]].append((r["score"], kinds[i] == "correct"))
        gone = {a["id"] for a in missed} if mended == "missed" else set()
        if mended == "false negatives":
            gone = {a["id"] for a in truth if a["id"] not in hit_by}
        values = []
        for category in content["categories"]:
            left = [a for a in truth if a["category_id"] == category["id"] and a["id"] not in gone]
            values.append(average_precision(lists[category["id"]], len(left), recalls))
        measured = [value for value in values if value >= 0]
        return sum(measured) / len(measured) if measured else 1.0

    names = ("class", "localisation", "both", "duplicate", "background", "missed", "false positives", "false negatives")
    before = score(None)
    return {
        "kinds": ["ignored" if i in ignored else kinds[i] for i in range(len(results))],
        "missed": [a["id"] for a in missed],
        "ap": before,
        "worth": {name: max(score(name) - before, 0) for name in names},
    }
