"""Compares the time of `evaluate` and `detect` with the time of their network's calls, and measures peak memory.

    python benchmarks/evaluate_benchmark.py model.onnx --annotations val.json --images val/ --json runs/evaluate.json
    python benchmarks/evaluate_benchmark.py model.onnx --annotations val.json --images val/ --memory 500 20000

A data set of --num-images JPEGs is made in a temporary folder by repeating the images of the given one. The model is
opened once. In each round a command alternates with the bare network: its calls on the batches that the command forms,
with reading and preparation untimed. A command's time goes from the annotations or file names to the figures or
detections.json; `detect` draws nothing. The ratio is the median over rounds of command / network, in wall time and in
processor time. On a busy machine the latter is steadier; it does not see processors that wait.

--memory runs the commands on data sets of these sizes, each in its own process, and compares their peaks of resident
memory, handles and threads. Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.coco import CocoDataset, load_coco, load_coco_with_truth
from runtime.coco.evaluation import score_detector
from runtime.coco.run import RunSettings, plan_batches
from runtime.detect import BATCH, MIN_SCORE
from runtime.detecting.images import DetectSettings, detect_images
from runtime.detection_files import DetectionFiles, json_file
from runtime.detection_filter import DetectionFilter
from runtime.detector import Detector
from runtime.files import atomic_write
from runtime.images.preprocess import join_batches
from runtime.images.sources import find_sources
from runtime.machine.conditions import describe_machine
from runtime.machine.processor import read_processor

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("evaluate", "detect")
WATCH_S = 0.02  # how often a running command is looked at


class Seconds(NamedTuple):
    """Time that something took."""

    wall: float
    processor: float  # of all threads of this process


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


def timed(work: Callable[[], object]) -> Seconds:
    """Time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def network_seconds(detector: Detector, dataset: CocoDataset, batch: int, limit: int | None = None) -> Seconds:
    """Time of the network's calls on the batches that a command forms, with nothing else running."""
    taken = [Seconds(0, 0)]
    for members in plan_batches([detector], dataset, batch, limit):
        ready = join_batches([detector.prepare(dataset.load(index, detector.load_preprocess)) for index in members])
        taken.append(timed(partial(detector.backend.infer, ready.images, ready.image_sizes)))
    return Seconds(*map(sum, zip(*taken, strict=True)))


def evaluate(detector: Detector, annotations: Path, images: Path, batch: int) -> dict[str, Any]:
    """Evaluate as the command does; the figures that a reader of the report wants to see."""
    dataset, truth = load_coco_with_truth(annotations, images)
    found = score_detector(detector, dataset, truth, RunSettings(batch))
    return {"AP": found.metrics.values["AP"], "detections": len(found.results)}


def detect(detector: Detector, images: Path, out: Path, batch: int) -> None:
    """Detect as the command does with --json-only."""
    sources = find_sources([images], out)
    kept = DetectionFilter(MIN_SCORE)
    with json_file(out / "detections.json", {"artifact": "benchmark"}) as writer:
        detect_images(
            detector, sources, out, DetectionFiles([writer]), DetectSettings(batch, kept, draws=False), lambda _: None
        )


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Alternate the commands and bare network calls; returns their times and ratios."""
    machine = describe_machine()
    images = folder / "images"
    images.mkdir()
    annotations = repeated(options.annotations, options.images, options.num_images, images)
    dataset = load_coco(annotations, images)
    rounds: dict[str, list[dict[str, float]]] = {command: [] for command in options.commands}
    found: dict[str, Any] = {}
    with Detector(options.model, backend=options.backend, threads=options.threads) as detector:
        batches = {"evaluate": options.batch or 8, "detect": options.batch or BATCH}
        work: dict[str, Callable[[], object]] = {
            "evaluate": lambda: found.update(evaluate(detector, annotations, images, batches["evaluate"])),
            "detect": lambda: detect(detector, images, folder / "out", batches["detect"]),
        }
        for command in options.commands:
            network_seconds(detector, dataset, batches[command], limit=2 * batches[command])  # warm-up
        for number in range(options.rounds):
            for command in options.commands:
                if number % 2:  # each side goes first as often as the other
                    taken = timed(work[command])
                    network = network_seconds(detector, dataset, batches[command])
                else:
                    network = network_seconds(detector, dataset, batches[command])
                    taken = timed(work[command])
                rounds[command].append(as_round(network, taken))
                print(f"round {number}, {command}: {as_text(rounds[command][-1])}", flush=True)
        manifest = detector.manifest
        report = {
            "commands": {command: summary(rounds[command], batches[command]) for command in options.commands},
            **found,
            "images": len(dataset),
            "image_size_hw": dataset.size_hw(0),
            "canvas_hw": detector.canvas_hw(dataset.size_hw(0)),
            "model": manifest.recipe,
            "precision": manifest.precision,
            "backend": detector.backend.description,
            "machine": dataclasses.asdict(machine),
            "processor": str(read_processor()),
        }
    for command, entry in report["commands"].items():
        print(
            f"{manifest.recipe} {manifest.precision} on {len(dataset)} images, batch {entry['batch']}: {command} takes "
            f"{entry['ratio']:.3f} × the network's calls in wall time, {entry['processor_ratio']:.3f} × in processor "
            f"time (medians of {options.rounds} rounds)"
        )
    print(f"{report['backend']}; {report['processor']}, {machine.usable_processors} processors")
    return report


def as_round(network: Seconds, command: Seconds) -> dict[str, float]:
    """One round's times and ratios, as the report has them."""
    return {
        "network_s": network.wall,
        "command_s": command.wall,
        "ratio": command.wall / network.wall,
        "network_processor_s": network.processor,
        "command_processor_s": command.processor,
        "processor_ratio": command.processor / network.processor,
        "load_average": round(os.getloadavg()[0], 2),
    }


def as_text(entry: dict[str, float]) -> str:
    """One round as a line."""
    return (
        f"network {entry['network_s']:.2f} s, command {entry['command_s']:.2f} s, ratio {entry['ratio']:.3f}; of "
        f"processor time {entry['processor_ratio']:.3f}; load {entry['load_average']}"
    )


def summary(rounds: Sequence[dict[str, float]], batch: int) -> dict[str, Any]:
    """Medians over the rounds, and the rounds."""
    medians = {name: statistics.median(entry[name] for entry in rounds) for name in ("ratio", "processor_ratio")}
    return {**medians, "batch": batch, "rounds": list(rounds)}


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What each command needs for each size of data set, each in its own process."""
    needed: dict[str, dict[int, dict[str, float]]] = {command: {} for command in options.commands}
    for count in options.memory:
        part = folder / str(count)
        part.mkdir()
        annotations = repeated(options.annotations, options.images, count, part)
        common = ["--threads", options.threads, "--backend", options.backend]
        common += ["--batch", options.batch] if options.batch else []
        arguments = {
            "evaluate": ["runtime.evaluate", options.model, "--annotations", annotations, "--images", part],
            "detect": ["runtime.detect", options.model, part, "--json-only", "-o", folder / "out"],
        }
        for command in options.commands:
            needed[command][count] = watch([sys.executable, "-m", *arguments[command], *common])
            print(f"{command}, {count} images: " + ", ".join(f"{v:.0f} {k}" for k, v in needed[command][count].items()))
            sys.stdout.flush()
        shutil.rmtree(part)
    first, last = options.memory[0], options.memory[-1]
    grown = {
        command: (sizes[last]["MB"] - sizes[first]["MB"]) / max(1, last - first) * 1024
        for command, sizes in needed.items()
    }
    for command, kilobytes in grown.items():
        print(f"{command}: {kilobytes:.2f} KB more per further image")
    machine = dataclasses.asdict(describe_machine())
    return {"peaks": needed, "kb_per_image": grown, "machine": machine, "processor": str(read_processor())}


def watch(command: Sequence[object]) -> dict[str, float]:
    """Run a command; its peaks of resident memory in MB, handles and threads."""
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL)
    folder = Path(f"/proc/{process.pid}")
    peaks = {"MB": 0.0, "handles": 0, "threads": 0}
    while process.poll() is None:
        with suppress(OSError):  # it has just ended
            # The peak that the system reports at the end may be this process's own, from before the command began.
            for line in (folder / "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peaks["MB"] = int(line.split()[1]) / 1024
            for name, things in (("handles", "fd"), ("threads", "task")):
                peaks[name] = max(peaks[name], len(os.listdir(folder / things)))
        time.sleep(WATCH_S)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return peaks


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help=f"images at a time (by default 8, and {BATCH} for detect)")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="threads of the backend (0: the backend's own choice)")
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES", help="compare peak memory instead of time")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare times, or with --memory what grows."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        report = memory(options, Path(folder)) if options.memory else compare(options, Path(folder))
    if options.json is not None:
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
