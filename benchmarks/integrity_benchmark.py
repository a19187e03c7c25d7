"""What it costs to notice damage: a checkpoint's hashes and checksums, and the hash of a deployed graph.

    python benchmarks/integrity_benchmark.py last.pt model.onnx [--rounds 9] [--copies 10]

Each pair takes turns: saving with and without hashes (to memory), reading with and without the checks, opening a file
in ONNX Runtime and hashing it before. Printed are medians of processor time and of wall time, and the checks' share.
The graph is hashed in a file with `copies` times its bytes too, for a figure per megabyte.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from runtime.backends.onnx_bytes import read_facts
from train.integrity import check_archive, check_finite, tensors_sha256

CPU = "CPUExecutionProvider"
STATES = ("model", "averaged", "optimizer")


def take_turns(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of processor seconds and wall seconds of each step; A B A B …, after one round that isn't counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            before = time.process_time(), time.perf_counter()
            step()
            seconds[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
    return {name: tuple(map(statistics.median, zip(*of[1:], strict=True))) for name, of in seconds.items()}  # type: ignore[misc]


def hash_again(path: Path) -> None:
    """Hash a file, which is read only where it seems to have changed."""
    os.utime(path)
    assert read_facts(path) is not None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--copies", type=int, default=10)
    options = parser.parse_args()
    content = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    states = {name: content[name] for name in STATES if content[name]}
    with tempfile.TemporaryDirectory() as folder:
        model, large = Path(folder) / "model.onnx", Path(folder) / "large.onnx"
        model.write_bytes(options.model.read_bytes())
        large.write_bytes(options.model.read_bytes() * options.copies)  # fields behind one another, as in one file
        steps: dict[str, Callable[[], Any]] = {
            "save": lambda: torch.save(content, io.BytesIO()),
            "  hash its tensors": lambda: tensors_sha256(states),
            "read": lambda: torch.load(options.checkpoint, map_location="cpu", weights_only=True),
            "  check the archive": lambda: check_archive(options.checkpoint),
            "  check for NaN": lambda: check_finite(states),
            "open in ONNX Runtime": lambda: onnxruntime.InferenceSession(str(model), providers=[CPU]),
            "  hash the graph": lambda: hash_again(model),
            f"  hash {options.copies} times as much": lambda: hash_again(large),
        }
        found = take_turns(steps, options.rounds)
        sizes = f"{options.checkpoint.stat().st_size / 1e6:.0f} MB and {model.stat().st_size / 1e6:.1f} MB"
    print(f"{sizes}; load {os.getloadavg()[0]:.1f}; milliseconds of processor and wall time")
    for name, (processor, wall) in found.items():
        print(f"{name:<28}{1000 * processor:10.1f}{1000 * wall:10.1f}")


if __name__ == "__main__":
    main()
