"""COCO's figures by `runtime.coco` and by pycocotools' COCOeval, on the same made-up results: time, and equality.

    python benchmarks/coco_benchmark.py --json runs/coco.json

Two data sets of --num-images images with 100 detections each: 14 objects of 3 categories, and 7 of 80. The two score in
turn; the ratio is the median of rounds. All twelve figures must be equal, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.coco import parse_ground_truth, parse_results, score
from runtime.files import atomic_write

DETECTIONS = 100


def make(images: int, objects: int, categories: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, and results of which two hits a object and the rest anything."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "images": [{"id": n + 1, "height": 480, "width": 640} for n in range(images)],
        "categories": [{"id": n + 1, "name": str(n + 1)} for n in range(categories)],
        "annotations": [],
    }
    results: list[dict[str, Any]] = []

    def box() -> list[float]:
        return [float(v) for v in (*rng.uniform(0, 500, 2), *rng.uniform(20, 120, 2))]

    for image in content["images"]:
        common = {"image_id": image["id"]}
        for _ in range(objects):
            truth, category = box(), int(rng.integers(1, categories + 1))
            number = len(content["annotations"]) + 1
            area = truth[2] * truth[3]
            content["annotations"].append(
                {**common, "id": number, "category_id": category, "bbox": truth, "area": area, "iscrowd": 0}
            )
            for _ in range(2):
                near = [float(v) for v in np.array(truth) + rng.normal(0, 5, 4) * (1, 1, 0, 0)]
                results.append({**common, "category_id": category, "bbox": near, "score": float(rng.random())})
        for _ in range(DETECTIONS - 2 * objects):
            category, chance = int(rng.integers(1, categories + 1)), float(rng.random() * 0.3)
            results.append({**common, "category_id": category, "bbox": box(), "score": chance})
    return content, results


def by_pycocotools(content: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(results), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer.stats.tolist()


def compare(images: int, objects: int, categories: int, rounds: int) -> dict[str, Any]:
    content, results = make(images, objects, categories)
    seconds: dict[str, list[float]] = {"ours": [], "pycocotools": []}
    for _ in range(rounds):
        given = copy.deepcopy((content, results))  # pycocotools writes into what it is given
        started = time.perf_counter()
        theirs = by_pycocotools(*given)
        middle = time.perf_counter()
        ours = score(parse_ground_truth(content), parse_results(results, "results"))
        ended = time.perf_counter()
        seconds["pycocotools"].append(middle - started)
        seconds["ours"].append(ended - middle)
    ratio = statistics.median(a / b for a, b in zip(seconds["pycocotools"], seconds["ours"], strict=True))
    is_equal = list(ours.values.values()) == theirs
    print(
        f"{images} images, {objects} objects of {categories} categories each: ours "
        f"{statistics.median(seconds['ours']):.2f} s, pycocotools {statistics.median(seconds['pycocotools']):.2f} s, "
        f"{ratio:.1f} × as fast; all figures equal: {is_equal}"
    )
    return {"objects": objects, "categories": categories, "seconds": seconds, "ratio": ratio, "equal": is_equal}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    sets = [compare(options.num_images, *shape, options.rounds) for shape in ((14, 3), (7, 80))]
    if options.json is not None:
        report = {"images": options.num_images, "load_average": load, "sets": sets}
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")
    return int(not all(entry["equal"] for entry in sets))


if __name__ == "__main__":
    sys.exit(main())
