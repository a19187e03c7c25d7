"""COCO's twelve metrics of the same made-up results by `runtime.coco`, pycocotools and faster-coco-eval.

    python benchmarks/coco_benchmark.py --num-images 500 5000 --json runs/coco.json
    python benchmarks/coco_benchmark.py --reading-against ../before --num-images 5000 --rounds 9
    python benchmarks/coco_benchmark.py --analysis --num-images 5000

Compared are time, peak memory and the numbers. There are two data sets of each size, with 100 detections per image: 14
objects of 3 categories, and 7 of 80. All scorers begin with the parsed JSON of annotations and results, and take turns.
A ratio is the median over rounds. Memory is the peak above the parsed JSON, each scorer in a process of its own.
faster-coco-eval is left out where it is not installed. The exit code is 1 unless every metric of ours equals that of
pycocotools bit for bit.

With --reading-against, only the reading of an annotation file is measured, by this checkout and by another one, which
take turns in processes of their own: processor time, wall time and peak memory. The file has 7 objects of each image
with outlines of 20 points, as COCO's own have. The exit code is 1 where the median ratio of processor times is above
1.1, or memory above 1.02.

With --analysis, errors by kind, the confusion matrix and changes take turns with the metrics, on 7 objects of 80
classes in each image. Printed are medians of processor time, and their ratio to the metrics' time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.files import atomic_write
from runtime.machine.conditions import memory_mb, peak_memory_mb, reset_peak_memory

DETECTIONS = 100
SETS = ((14, 3), (7, 80))  # objects of an image, categories
OURS, REFERENCE = "runtime.coco", "pycocotools"

READING_AT_MOST, MEMORY_AT_MOST = 1.1, 1.02  # times the other checkout's
# Run in a process of its own, with the measured checkout first in its path.
READ = """
import json, sys, time
from runtime.coco import load_coco_with_truth
from runtime.machine.conditions import memory_mb, peak_memory_mb, reset_peak_memory
before = memory_mb()
reset_peak_memory()
processor, wall = time.process_time(), time.perf_counter()
dataset, truth = load_coco_with_truth(sys.argv[1], ".")
times = time.process_time() - processor, time.perf_counter() - wall
print(json.dumps([*times, peak_memory_mb() - before, len(dataset.boxes), len(truth.boxes), list(dataset.problems)]))
"""

Scorer = Callable[[dict[str, Any], list[dict[str, Any]]], list[float]]


def make(images: int, objects: int, categories: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, and results of which two hit each object and the rest anything."""
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


def by_ours(content: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """The twelve metrics, by this toolkit."""
    from runtime.coco import parse_ground_truth, parse_results, score

    return list(score(parse_ground_truth(content), parse_results(results, "results")).values.values())


def by_pycocotools(content: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """The twelve metrics, by the reference."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(results), "bbox")
        return _stats(scorer)


def by_faster_coco_eval(content: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """The twelve metrics, by faster-coco-eval (C++)."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(content)
    return _stats(COCOeval_faster(truth, truth.loadRes(results), "bbox"))


def _stats(scorer: Any) -> list[float]:
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return [float(value) for value in scorer.stats[:12]]


def scorers() -> dict[str, Scorer]:
    """Those that are installed, by name."""
    found: dict[str, Scorer] = {OURS: by_ours, REFERENCE: by_pycocotools}
    if importlib.util.find_spec("faster_coco_eval") is not None:
        found["faster-coco-eval"] = by_faster_coco_eval
    return found


def compare(images: int, objects: int, categories: int, rounds: int) -> dict[str, Any]:
    """Time, memory and numbers of every scorer on one data set."""
    content, results = make(images, objects, categories)
    installed = scorers()
    seconds: dict[str, list[float]] = {name: [] for name in installed}
    values: dict[str, list[float]] = {}
    for number in range(rounds):
        names = list(installed)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            given = copy.deepcopy((content, results))  # the others write into what they are given
            started = time.perf_counter()
            values[name] = installed[name](*given)
            seconds[name].append(time.perf_counter() - started)
    print(f"{images} images, {objects} objects of {categories} categories each")
    report = {}
    for name in installed:
        differences = np.abs(np.array(values[name]) - np.array(values[REFERENCE]))
        report[name] = {
            "seconds": seconds[name],
            "times_the_seconds_of_ours": statistics.median(
                theirs / ours for theirs, ours in zip(seconds[name], seconds[OURS], strict=True)
            ),
            "peak_mb": peak_of(name, images, objects, categories),
            "equal": values[name] == values[REFERENCE],
            "largest_difference": float(differences.max()),
        }
        row = report[name]
        print(
            f"  {name:<18}{statistics.median(seconds[name]):7.2f} s, {row['times_the_seconds_of_ours']:5.2f} × ours, "
            f"{row['peak_mb']:6.0f} MB, equal to {REFERENCE}: {row['equal']} (largest difference "
            f"{row['largest_difference']:.1e})",
            flush=True,
        )
    return {"images": images, "objects": objects, "categories": categories, "scorers": report}


def peak_of(name: str, images: int, objects: int, categories: int) -> float:
    """Peak memory of a scorer above its input, MB, in a process of its own."""
    command = [sys.executable, __file__, "--measure-memory", name, *map(str, (images, objects, categories))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, images: str, objects: str, categories: str) -> None:
    """What `peak_of` starts: print the peak."""
    scorers()[name](*make(2, 1, 1))  # imports are no part of it
    given = make(int(images), int(objects), int(categories))
    before = memory_mb()
    reset_peak_memory()
    scorers()[name](*given)
    print(peak_memory_mb() - before)


def compare_reading(other: Path, images: int, rounds: int) -> dict[str, Any]:
    """Times and memory of reading one annotation file, by this checkout and by the one in `other`."""
    content, _ = make(images, 7, 80)
    rng = np.random.default_rng(1)
    for image in content["images"]:
        image["file_name"] = f"{image['id']:012d}.jpg"
    for annotation in content["annotations"]:
        annotation["segmentation"] = [rng.uniform(0, 500, 40).round(2).tolist()]
    roots = {"this": Path(__file__).resolve().parents[1], "other": other.resolve()}
    found: dict[str, list[list[Any]]] = {name: [] for name in roots}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_text(json.dumps(content), encoding="utf-8")
        for number in range(rounds + 1):
            for name in ("this", "other") if number % 2 else ("other", "this"):
                command = [sys.executable, "-c", READ, str(path)]
                environment = {**os.environ, "PYTHONPATH": str(roots[name])}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder)
                if number:  # the first round warms the disk's cache
                    found[name].append(json.loads(done.stdout))
    pairs = list(zip(found["this"], found["other"], strict=True))
    if any(ours[3:] != theirs[3:] for ours, theirs in pairs):
        raise SystemExit("the two checkouts read the file differently")
    kinds = ("processor_seconds", "wall_seconds", "peak_mb")
    report: dict[str, Any] = {"images": images, "annotations": len(content["annotations"]), "rounds": rounds}
    for place, kind in enumerate(kinds):
        ratios = [ours[place] / theirs[place] for ours, theirs in pairs]
        report[kind] = {name: [row[place] for row in rows] for name, rows in found.items()}
        report[f"{kind}_times_the_others"] = statistics.median(ratios)
        medians = [statistics.median(row[place] for row in found[name]) for name in roots]
        print(f"  {kind:<18}{medians[0]:8.2f}, the other's {medians[1]:8.2f}, ratio {statistics.median(ratios):.3f}")
    return report


def time_analysis(images: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of the analyses of one data set, and of its metrics, which take turns."""
    from runtime.analysis.changes import find_changes
    from runtime.analysis.confusion import confusion_matrix
    from runtime.analysis.errors import find_errors
    from runtime.coco import Results, parse_ground_truth, parse_results, score

    content, rows = make(images, 7, 80)
    truth, results = parse_ground_truth(content), parse_results(rows, "results")
    shifts = np.random.default_rng(2).normal(0, 1, results.boxes.shape) * (1, 1, 0, 0)
    moved = Results(results.image_ids, results.category_ids, results.boxes + shifts, results.scores)
    functions: dict[str, Callable[[], Any]] = {
        "metrics": lambda: score(truth, results),
        "errors": lambda: find_errors(truth, results),
        "confusion": lambda: confusion_matrix(truth, results, min_score=0.3),
        "changes": lambda: find_changes(truth, results, moved, min_score=0.3),
        "changes of all": lambda: find_changes(truth, results, moved, min_score=0.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.process_time()
            function()
            seconds[name].append(time.process_time() - started)
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds["metrics"], strict=True))
        print(f"  {name:<16}{statistics.median(times):7.2f} s, {ratio:5.2f} × the metrics", flush=True)
    return {"images": images, "processor_seconds": seconds}


def main() -> int:
    """Run the comparison and print it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, nargs="+", default=[500], metavar="N", help="sizes (500)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which the scorers take turns (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--reading-against", type=Path, metavar="CHECKOUT", help="compare the reading of annotations")
    parser.add_argument("--analysis", action="store_true", help="time the analyses of results instead")
    parser.add_argument("--measure-memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory is not None:
        measure_memory(*options.measure_memory)
        return 0
    load = round(os.getloadavg()[0], 2)
    if options.reading_against is not None:
        print(f"reading annotations, load {load}")
        read = [compare_reading(options.reading_against, images, options.rounds) for images in options.num_images]
        if options.json is not None:
            atomic_write(options.json, json.dumps({"load_average": load, "reading": read}, indent=2) + "\n")
        return int(
            any(
                row["processor_seconds_times_the_others"] > READING_AT_MOST
                or row["peak_mb_times_the_others"] > MEMORY_AT_MOST
                for row in read
            )
        )
    if options.analysis:
        print(f"analyses, load {load}")
        timed = [time_analysis(images, options.rounds) for images in options.num_images]
        if options.json is not None:
            atomic_write(options.json, json.dumps({"load_average": load, "analysis": timed}, indent=2) + "\n")
        return 0
    sets = [compare(images, *shape, options.rounds) for images in options.num_images for shape in SETS]
    if options.json is not None:
        atomic_write(options.json, json.dumps({"load_average": load, "sets": sets}, indent=2) + "\n")
    return int(not all(entry["scorers"][OURS]["equal"] for entry in sets))


if __name__ == "__main__":
    sys.exit(main())
