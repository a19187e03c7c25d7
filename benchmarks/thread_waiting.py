"""Measures how the threads of a training step on a CPU should wait for each other, alone and on a busy machine.

    python -m benchmarks.thread_waiting [--rounds 3] [--seconds 5] [--json waiting.json]

torch's threads meet at the end of each operation. GNU's OpenMP, which torch's wheels for Linux bring, lets those that
are early spin for a while before they sleep. A thread that spins goes on quickly, and on a busy machine it takes the
time of the thread that it waits for. Each way of waiting runs in processes of its own, since OpenMP reads it once; the
ways take turns in each situation. `runtime.waiting` has what commands do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from runtime.files import atomic_write
from runtime.machine.processor import read_processor

WAYS: dict[str, dict[str, str]] = {
    "OpenMP's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
}
ALONE, TWO, BUSY = "alone", "two at once", "beside a busy process a core"
RECIPE, BATCH, CANVAS = "atss_tiny", 8, (192, 256)


def steps_per_second(seconds: float) -> float:
    """Steps a second of the recipe on random images, within `seconds` after two that warm up."""
    import torch

    from benchmarks.step_benchmark import random_batch
    from train.build import build_criterion, build_detector, without_weights
    from train.config.recipes import RECIPES
    from train.trainer.backward import backward
    from train.trainer.optim import build_optimizer, clip_gradients

    config = RECIPES[RECIPE]()
    model = build_detector(without_weights(config.model), 80, config.preprocess).train()
    criterion, optimizer = build_criterion(config.model), build_optimizer(model, config.schedule)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    images, targets = random_batch(BATCH, CANVAS, torch.device("cpu"))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(model, criterion, images, targets, 1, torch.float32, scaler)
        clip_gradients([p for p in model.parameters() if p.requires_grad], config.schedule.clip_norm)
        optimizer.step()

    for _ in range(2):
        step()
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not count:
        step()
        count += 1
    return count / took


def measure(way: str, situation: str, seconds: float) -> float:
    """Steps a second of a process that waits so; of two at once their mean."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    }
    command = [sys.executable, "-m", "benchmarks.thread_waiting", "--child", str(seconds)]
    others = os.cpu_count() or 1 if situation == BUSY else 0
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
    try:
        children = [
            subprocess.Popen(command, env={**environment, **WAYS[way]}, stdout=subprocess.PIPE, text=True)
            for _ in range(2 if situation == TWO else 1)
        ]
        answers = [child.communicate()[0] for child in children]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return statistics.mean(float(answer) for answer in answers)


def main() -> None:
    """Let the ways take turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(steps_per_second(options.child))
        return
    conditions = f"{RECIPE}, batch {BATCH} of {CANVAS[0]} × {CANVAS[1]}, {os.cpu_count()} cores, {read_processor()}"
    print(f"{conditions}, load before {os.getloadavg()[0]:.1f}")
    found: dict[str, dict[str, list[float]]] = {}
    for situation in (ALONE, TWO, BUSY):
        figures = found[situation] = defaultdict(list)
        for _ in range(options.rounds):
            for way in WAYS:
                figures[way].append(measure(way, situation, options.seconds))
        first = statistics.median(figures[next(iter(WAYS))])
        for way, values in figures.items():
            median, spread = statistics.median(values), f"{min(values):.2f}–{max(values):.2f}"
            print(
                f"{situation:<30}{way:<26}{median:6.2f} steps/s ({spread}){median / first:7.2f} × the default",
                flush=True,
            )
    if options.json is not None:
        atomic_write(options.json, json.dumps({"conditions": conditions, "steps_per_second": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
