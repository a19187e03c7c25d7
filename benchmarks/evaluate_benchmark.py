"""Compares the wall time of `evaluate` with the time of its network's calls, and measures its peak memory.

    python benchmarks/evaluate_benchmark.py model.onnx --annotations val.json --images val/ --json runs/evaluate.json
    python benchmarks/evaluate_benchmark.py model.onnx --annotations val.json --images val/ --memory 500 2000

A data set of --num-images JPEGs is made in a temporary folder by repeating the images of the given one. Then two
measurements alternate: the network alone, on every batch that evaluation forms, with preparation untimed; and the whole
evaluation, from reading the annotations to the figures, with the model already open. The ratio is that of their sums.
--memory runs `python -m runtime.evaluate` on data sets of these sizes and compares the peaks of resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.coco import CocoDataset, load_coco, load_coco_with_truth
from runtime.coco.evaluation import score_detector
from runtime.coco.run import RunSettings, plan_batches
from runtime.detector import Detector
from runtime.files import atomic_write
from runtime.images.preprocess import join_batches
from runtime.machine.processor import processors

ROOT = Path(__file__).resolve().parents[1]


def repeated(annotations: Path, images: Path, count: int, folder: Path) -> Path:
    """Make a data set of `count` images by repeating another one's images; returns its annotation file."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    made: dict[str, Any] = {"images": [], "annotations": [], "categories": content["categories"]}
    for number in range(count):
        image = content["images"][number % len(content["images"])]
        name = f"{number:06}{Path(image['file_name']).suffix}"
        shutil.copyfile(images / image["file_name"], folder / name)
        made["images"].append({**image, "id": number + 1, "file_name": name})
        for annotation in of_image.get(image["id"], []):
            made["annotations"].append({**annotation, "id": len(made["annotations"]) + 1, "image_id": number + 1})
    path = folder / "annotations.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def network_seconds(detector: Detector, dataset: CocoDataset, batch: int, limit: int | None = None) -> float:
    """Seconds of the network's calls on the batches that evaluation forms, with nothing else running."""
    seconds = 0.0
    for members in plan_batches([detector], dataset, batch, limit):
        ready = join_batches([detector.prepare(dataset.image(index)) for index in members])
        started = time.perf_counter()
        detector.backend.infer(ready.images, ready.image_sizes)
        seconds += time.perf_counter() - started
    return seconds


def evaluation_seconds(detector: Detector, annotations: Path, images: Path, batch: int) -> tuple[float, dict[str, Any]]:
    """Wall seconds of an evaluation, from reading the annotations to the figures, and its result."""
    started = time.perf_counter()
    dataset, truth = load_coco_with_truth(annotations, images)
    found = score_detector(detector, dataset, truth, RunSettings(batch))
    seconds = time.perf_counter() - started
    return seconds, {"AP": found.metrics.values["AP"], "detections": len(found.results)}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate evaluation and bare network calls; returns both times and their ratio."""
    annotations = repeated(options.annotations, options.images, options.num_images, folder)
    dataset = load_coco(annotations, folder)
    rounds = []
    with Detector(options.model, backend=options.backend, threads=options.threads) as detector:
        network_seconds(detector, dataset, options.batch, limit=2 * options.batch)  # warm-up
        for number in range(options.rounds):
            network = network_seconds(detector, dataset, options.batch)
            wall, found = evaluation_seconds(detector, annotations, folder, options.batch)
            rounds.append({"network_s": network, "evaluate_s": wall, "ratio": wall / network})
            print(
                f"round {number}: network {network:.2f} s, evaluate {wall:.2f} s, ratio {wall / network:.3f}",
                flush=True,
            )
        manifest = detector.manifest
        report = {
            "ratio": statistics.median(entry["ratio"] for entry in rounds),
            "rounds": rounds,
            **found,
            "images": len(dataset),
            "image_size_hw": dataset.size_hw(0),
            "canvas_hw": detector.canvas_hw(dataset.size_hw(0)),
            "model": manifest.recipe,
            "precision": manifest.precision,
            "backend": detector.backend.description,
            "batch": options.batch,
            **conditions(),
        }
    print(
        f"{manifest.recipe} {manifest.precision} on {len(dataset)} images, batch {options.batch}, "
        f"{report['detections'] / len(dataset):.1f} detections each: evaluate takes {report['ratio']:.3f} × the "
        f"network's calls (median of {options.rounds} rounds)"
    )
    return report


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak resident memory of `evaluate` for each size of data set, each in its own process."""
    peaks = {}
    for count in options.memory:
        part = folder / str(count)
        part.mkdir()
        annotations = repeated(options.annotations, options.images, count, part)
        command = [sys.executable, "-m", "runtime.evaluate", options.model, "--annotations", annotations]
        command += ["--images", part, "--batch", options.batch, "--threads", options.threads]
        command += ["--backend", options.backend]
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"evaluate failed on {count} images")
        peaks[count] = usage.ru_maxrss / 1024
        print(f"{count} images: peak {peaks[count]:.0f} MB", flush=True)
    first, last = options.memory[0], options.memory[-1]
    grown = (peaks[last] - peaks[first]) / (last - first) * 1024
    print(f"{grown:.1f} KB more per further image")
    return {"peak_mb": peaks, "kb_per_image": grown, "batch": options.batch, **conditions()}


def conditions() -> dict[str, Any]:
    """The conditions of the measurement, for the report."""
    return {
        "processors": processors(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
        "environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ
        },
    }


def main() -> None:
    """Compare times, or with --memory the peaks of memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="threads of the backend (0: the backend's own choice)")
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES", help="compare peak memory instead of time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = memory(options, Path(folder)) if options.memory else compare(options, Path(folder))
    if options.json is not None:
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
