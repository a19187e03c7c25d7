"""Measures options of ONNX Runtime's CPU sessions: spinning threads, the memory arena, and sides that it knows.

    python benchmarks/session_options.py model.onnx [--json options.json]

Spinning: milliseconds for a batch of one with and without it, alternating, on the machine as it is and beside a process
that keeps one core busy, as decoding does. Arena: resident memory after batches of many canvas sizes, and their time,
with and without the arena, each in its own process. Known sides: milliseconds of a file for every canvas, beside those
in a session that was opened for this canvas alone and so adds residual sums in place, alternating.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from runtime.files import atomic_write


def session_options(spinning: bool, arena: bool) -> Any:
    """Options of a CPU session with these settings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return options


def session(path: Path, spinning: bool, arena: bool) -> Any:
    """A CPU session with these settings."""
    options = session_options(spinning, arena)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(batch: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Random inputs of the deployed graph for one canvas size."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return {"images": images, "image_sizes": np.full((batch, 2), (height, width), np.int32)}


def known_sides(path: Path, rounds: int, batch: int, height: int, width: int) -> dict[str, float]:
    """Milliseconds of a batch in a session for every canvas and in one for this canvas, and the ratio of both."""
    every = session(path, False, True)
    named = every.get_inputs()[0].shape[1:3]
    if not all(isinstance(name, str) for name in named):
        return {}  # the file takes one canvas
    options = session_options(False, True)
    for name, side in zip(named, (height, width), strict=True):
        options.add_free_dimension_override_by_name(name, side)
    one = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    sessions, given = {"every canvas": every, "this canvas": one}, feed(batch, height, width)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for round_number in range(rounds + 1):
        for name, run in sessions.items():
            started = time.perf_counter()
            run.run(None, given)
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(x / y for x, y in zip(*seconds.values(), strict=True))
    return {name: round(1000 * statistics.median(values), 2) for name, values in seconds.items()} | {"ratio": ratio}


def busy() -> None:
    """Keep a core busy until the process is ended."""
    while True:
        pass


def spinning(path: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a batch with and without spinning threads, alone and beside a busy process."""
    sessions = {"spinning": session(path, True, True), "not spinning": session(path, False, True)}
    batch = feed(1, 256, 320)
    found = {}
    for place in ("alone", "beside a busy process"):
        other = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
        if place != "alone":
            other.start()
            time.sleep(2)
        seconds: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(rounds):
            for name, one in sessions.items():
                started = time.perf_counter()
                one.run(None, batch)
                seconds[name].append(time.perf_counter() - started)
        if place != "alone":
            other.terminate()
            other.join()
        found[place] = {name: round(1000 * statistics.median(values), 2) for name, values in seconds.items()}
    return found


def resident_mb() -> float:
    """This process's resident memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def arena_alone(path: Path, arena: bool, shrink: bool, answer: Any) -> None:
    """Run many canvas sizes in this process and put memory and time into `answer`."""
    one = session(path, False, arena)
    options = onnxruntime.RunOptions()
    if shrink:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    sides = [(h, w) for h in range(192, 449, 64) for w in range(192, 449, 64)]
    order = np.random.default_rng(0).permutation(len(sides)).tolist()
    one.run(None, feed(4, 448, 448), options)
    after_largest, seconds = resident_mb(), []
    for index in order * 2:
        batch = feed(4, *sides[index])
        started = time.perf_counter()
        one.run(None, batch, options)
        seconds.append(time.perf_counter() - started)
    answer.put(
        {"mb_after_largest": round(after_largest), "mb_at_the_end": round(resident_mb()), "seconds": sum(seconds)}
    )


def arenas(path: Path) -> dict[str, dict[str, float]]:
    """Memory and time with the arena, with an arena that shrinks, and without it."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, arena, shrink in (("arena", True, False), ("arena, shrunk", True, True), ("no arena", False, False)):
        answer = context.Queue()
        process = context.Process(target=arena_alone, args=(path, arena, shrink, answer))
        process.start()
        found[name] = answer.get()
        process.join()
    return found


def main() -> int:
    """Measure spinning and the arena, print the figures and write them as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--canvas", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="of known sides")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    conditions = {
        "model": options.model.name,
        "threads": os.cpu_count(),
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    report: dict[str, Any] = {"conditions": conditions, "spinning_ms": spinning(options.model, options.rounds)}
    for place, figures in report["spinning_ms"].items():
        print(f"{place}: " + ", ".join(f"{name} {value} ms" for name, value in figures.items()))
    report["known_sides"] = {}
    for batch in (1, 8):
        found = known_sides(options.model, max(3, options.rounds // (10 * batch)), batch, *options.canvas)
        report["known_sides"][batch] = found
        print(f"known sides, batch {batch}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    report["arena"] = arenas(options.model)
    for name, figures in report["arena"].items():
        print(
            f"{name}: {figures['mb_after_largest']} MB after the largest canvas, {figures['mb_at_the_end']} MB after "
            f"50 batches of 25 canvases, {figures['seconds']:.1f} s"
        )
    if options.json is not None:
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
