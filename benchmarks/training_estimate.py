"""Compares the estimate of a training step's memory, printed before a run's first step, with what the step takes.

    python benchmarks/training_estimate.py [--recipes atss_quick atss_tiny] [--json estimate.json]

Each step runs in a process of its own, on random boxes in black images. On a CPU, measured is how far the process's
peak of resident memory rises above what it held with the weights; on a GPU it is the peak of torch's allocator, weights
included. The estimate is taken likewise.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from runtime.files import atomic_write
from train.build import build_criterion, build_detector, without_weights
from train.config.recipes import RECIPES
from train.loss.criterion import Targets
from train.trainer.backward import backward
from train.trainer.step_memory import step_memory

CLASSES = 80
BOXES = 8  # per image
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = ((2, 320, 320), (8, 320, 320), (4, 512, 640))  # images, canvas height and width


def measure(recipe: str, images: int, canvas_hw: tuple[int, int], precision: str, device: str) -> dict[str, float]:
    """Bytes that the estimate says, and that a step takes."""
    config = RECIPES[recipe]()
    network = build_detector(without_weights(config.model), CLASSES, config.preprocess).train().to(device)
    if config.run.channels_last:
        network = network.to(memory_format=torch.channels_last)
    dtype = DTYPES[precision]
    estimated = step_memory(network, build_criterion(config.model), images, canvas_hw, BOXES, dtype, device=device)
    criterion = build_criterion(config.model)

    def step(count: int, height: int, width: int) -> None:
        corner = torch.rand(count, BOXES, 2) * 40
        targets = Targets(
            torch.cat([corner, corner + 20], dim=2).to(device),
            torch.zeros(count, BOXES, dtype=torch.int64, device=device),
            torch.ones(count, BOXES, dtype=torch.bool, device=device),
        )
        pixels = torch.zeros((count, height, width, 3), dtype=torch.uint8, device=device)
        scaler = torch.amp.GradScaler(device, enabled=False)
        backward(network, criterion, pixels, targets, 1, dtype, scaler)

    step(1, 64, 64)  # loads the libraries' code
    network.zero_grad(set_to_none=True)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(images, *canvas_hw)
        return {"estimated": estimated, "measured": torch.cuda.max_memory_allocated()}
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    step(images, *canvas_hw)
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return {"estimated": estimated - weights, "measured": resident("VmHWM") - before}


def resident(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: measure on Linux")


def main() -> int:
    """Measure every case in its own process and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["atss_quick", "atss_tiny", "atss_r18_fpn"], choices=RECIPES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--case", nargs=5, help=argparse.SUPPRESS)  # of a process that measures
    options = parser.parse_args()
    if options.case:
        recipe, precision, *sizes = options.case
        images, height, width = map(int, sizes)
        print(json.dumps(measure(recipe, images, (height, width), precision, options.device)))
        return 0
    rows = []
    print(f"{os.cpu_count()} processors, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for recipe in options.recipes:
        for images, height, width in CASES:
            for precision in DTYPES:
                case = [recipe, precision, *map(str, (images, height, width))]
                command = [sys.executable, __file__, "--device", options.device, "--case", *case]
                ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(ended.stdout.splitlines()[-1])
                rows.append(dict(recipe=recipe, precision=precision, images=images, hw=[height, width], **found))
                said, taken = found["estimated"], found["measured"]
                print(
                    f"{recipe:16} {precision} {images:3} × {height}×{width}: estimated {said / 1e6:5.0f} MB, measured "
                    f"{taken / 1e6:5.0f} MB, ratio {said / taken:.2f}",
                    flush=True,
                )
    if options.json is not None:
        atomic_write(options.json, json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
