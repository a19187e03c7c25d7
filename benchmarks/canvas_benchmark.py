"""Measures what batching by canvas saves against square canvases, and against padding to the batch's largest image.

    python benchmarks/canvas_benchmark.py                                     # pixels alone
    python benchmarks/canvas_benchmark.py model.onnx --json runs/canvas.json  # and time

The sizes are those of 100 images of COCO val2014 (listed below), in random order. Pixels are counted on the canvases,
for a shorter side of 800 and a longer side of at most 1333, and for the model's own sides. Time is the time of the
network's calls on the same images. The three ways alternate, an eighth of the images at a time; the figure is the
median ratio over rounds. "By canvas" means the batches that the pipeline's stream forms with its window, short batches
included. "Planned" means the batches of an evaluation, which knows all sizes beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.batch_settings import WINDOW, pipeline_settings
from runtime.batching import batches_by, cut
from runtime.detector import Detector
from runtime.files import atomic_write
from runtime.images.preprocess import make_batch, plan
from runtime.machine.processor import processors
from runtime.manifest import Preprocess
from runtime.pipeline import PipelineSettings, run_pipeline

# fmt: off
COCO_SIZES_WH = {
    (640, 480): 24, (640, 427): 12, (500, 375): 4, (640, 426): 4, (640, 428): 3, (480, 640): 3, (427, 640): 2,
    (426, 640): 2, (375, 500): 2, (333, 500): 2, (428, 640): 2, (500, 335): 2, (638, 640): 1, (500, 343): 1,
    (516, 640): 1, (640, 425): 1, (640, 407): 1, (334, 500): 1, (443, 640): 1, (640, 479): 1, (640, 540): 1,
    (621, 640): 1, (640, 485): 1, (640, 347): 1, (400, 267): 1, (640, 424): 1, (640, 218): 1, (424, 640): 1,
    (640, 573): 1, (640, 580): 1, (640, 444): 1, (640, 478): 1, (359, 640): 1, (565, 640): 1, (500, 374): 1,
    (409, 500): 1, (640, 226): 1, (640, 406): 1, (640, 491): 1, (586, 640): 1, (640, 327): 1, (500, 496): 1,
    (520, 640): 1, (600, 500): 1, (500, 332): 1, (425, 640): 1, (640, 360): 1, (502, 640): 1, (640, 483): 1,
    (448, 336): 1,
}
# fmt: on
WAYS = ("by canvas", "planned", "largest of the batch", "square")
Size = tuple[int, int]
Batches = list[tuple[Size, list[Size]]]  # canvas and images, height and width


def mix(count: int) -> list[Size]:
    """Heights and widths of `count` images, in random order."""
    sizes = [(height, width) for (width, height), share in COCO_SIZES_WH.items() for _ in range(share)]
    chosen = [sizes[number % len(sizes)] for number in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


def batches_of(sizes: list[Size], pre: Preprocess, limits: PipelineSettings) -> dict[str, Batches]:
    """The batches that each way makes of the images, in the order in which they come."""
    formed: Batches = []

    def run(batch: list[Size]) -> list[None]:
        formed.append((plan(batch[0], pre).canvas_hw, batch))
        return [None] * len(batch)

    for _ in run_pipeline(sizes, lambda size: size, lambda size: plan(size, pre).canvas_hw, run, limits):
        pass
    square = -(-pre.long_side // pre.size_divisor) * pre.size_divisor
    chunks = cut(sizes, limits.batch)
    largest = [(_largest([plan(size, pre).canvas_hw for size in chunk]), chunk) for chunk in chunks]
    planned = batches_by(sizes, lambda size: plan(size, pre).canvas_hw, limits.batch)
    squares = [((square, square), chunk) for chunk in chunks]
    return dict(zip(WAYS, (formed, planned, largest, squares), strict=True))


def _largest(canvases: list[Size]) -> Size:
    return max(height for height, _ in canvases), max(width for _, width in canvases)


def pixels(batches: Batches) -> int:
    """Pixels of all canvases of these batches."""
    return sum(height * width * len(members) for (height, width), members in batches)


def report_pixels(ways: dict[str, Batches], pre: Preprocess, batch: int) -> dict[str, Any]:
    """Print and return each way's pixels, and the share that batching by canvas saves."""
    total = {name: pixels(batches) for name, batches in ways.items()}
    ours = total[WAYS[0]]
    saved = {name: 1 - ours / total[name] for name in WAYS[2:]}
    sizes = {name: statistics.mean(len(members) for _, members in ways[name]) for name in WAYS}
    print(
        f"sides {pre.short_side}/{pre.long_side}, batch {batch}: {_percent(saved)} of the pixels saved; images in a "
        f"batch {sizes['by canvas']:.2f} in a stream, {sizes['planned']:.2f} planned"
    )
    return {"sides": [pre.short_side, pre.long_side], "pixels": total, "saved": saved, "images_in_a_batch": sizes}


def _percent(saved: dict[str, float]) -> str:
    return ", ".join(f"against {name} {100 * share:.1f} %" for name, share in reversed(saved.items()))


def report_time(detector: Detector, ways: dict[str, Batches], rounds: int) -> dict[str, Any]:
    """Seconds of the network's calls for each way. The ways alternate slice by slice."""
    pre = detector.manifest.preprocess
    image = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):  # the first warms up
        spent = dict.fromkeys(WAYS, 0.0)
        slices = {name: _slices(batches, 8) for name, batches in ways.items()}
        for step in range(8):
            for name in WAYS if step % 2 else WAYS[::-1]:
                for canvas_hw, members in slices[name][step]:
                    images = [image[:height, :width] for height, width in members]
                    ready = make_batch(images, pre, canvas_hw)
                    started = time.perf_counter()
                    detector.backend.infer(ready.images, ready.image_sizes)
                    spent[name] += time.perf_counter() - started
        if number:
            for name in WAYS:
                seconds[name].append(spent[name])
    saved = {
        ours: {
            name: 1 - statistics.median(a / b for a, b in zip(seconds[ours], seconds[name], strict=True))
            for name in WAYS[2:]
        }
        for ours in WAYS[:2]
    }
    model, backend = detector.manifest.recipe, detector.backend.description
    print(f"{model}, {backend}: of the network's time saved (median of {rounds} rounds)")
    for ours, shares in saved.items():
        print(f"  {ours}: {_percent(shares)}")
    return {"model": model, "backend": backend, "seconds": seconds, "saved": saved}


def _slices(batches: Batches, count: int) -> list[Batches]:
    return [batches[len(batches) * step // count : len(batches) * (step + 1) // count] for step in range(count)]


def main() -> None:
    """Compare pixels, and time where a model is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--num-images", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = mix(options.num_images)
    limits = PipelineSettings(options.batch, WINDOW * options.batch)
    report: dict[str, Any] = {"images": len(sizes), "batch": options.batch, "processors": processors(), "pixels": []}
    report["load_average"] = round(os.getloadavg()[0], 2)
    coco = Preprocess(800, 1333)
    report["pixels"].append(report_pixels(batches_of(sizes, coco, limits), coco, options.batch))
    if options.model is not None:
        with Detector(options.model, backend=options.backend, threads=options.threads) as detector:
            pre = detector.manifest.preprocess
            limits = dataclasses.replace(pipeline_settings(detector, options.batch), runners=1)
            ways = batches_of(sizes, pre, limits)
            report["pixels"].append(report_pixels(ways, pre, options.batch))
            report["time"] = report_time(detector, ways, options.rounds)
    if options.json is not None:
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
