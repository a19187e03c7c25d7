"""How long an export takes, by stage: import, trace, write, verify. Processor time and wall time on one core.

    taskset -c 0 python benchmarks/export_time.py                       # atss_tiny, atss_lite0, atss_r50_fpn_1x
    taskset -c 0 python benchmarks/export_time.py --recipes atss_tiny --rounds 5

Each export runs in a process of its own, as the command does, the recipes by turns. Weights are random, as in
`random_detectors.py`: the time doesn't depend on them. `import` holds the loading of libraries and checkpoint, `trace`
everything up to the model in memory, `write` its manifest and bytes, `verify` the comparison with the checkpoint on
synthetic images. Printed are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

STAGES = ("import", "trace", "write", "verify")
RECIPES = ("atss_tiny", "atss_lite0", "atss_r50_fpn_1x")


def main() -> None:
    """Make the checkpoints, export each of them in rounds, print the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--canvas", type=int, nargs=2, metavar=("H", "W"), help="fix the canvas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write all times there")
    parser.add_argument("--one", type=Path, metavar="CKPT", help=argparse.SUPPRESS)  # what the processes are told
    options = parser.parse_args()
    if options.one:
        print(json.dumps(export_once(options.one, options.canvas)))
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    found: dict[str, list[dict[str, list[float]]]] = {recipe: [] for recipe in options.recipes}
    from benchmarks.random_detectors import our_checkpoint, photographs  # not in the processes that are measured

    images = photographs(None, 2, 192, 256)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes:
            our_checkpoint(recipe, images, Path(folder) / f"{recipe}.pt")
        for _ in range(options.rounds):
            for recipe, rounds in found.items():
                command = [sys.executable, __file__, "--one", f"{folder}/{recipe}.pt"]
                command += ["--canvas", *map(str, options.canvas)] if options.canvas else []
                said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                rounds.append(json.loads(said.stdout.splitlines()[-1]))
    load = os.getloadavg()[0]
    print(f"seconds of processor time (wall time), medians of {options.rounds} rounds, load at the end {load:.1f}")
    print(f"{'recipe':18}" + "".join(f"{name:>16}" for name in (*STAGES, "total")))
    for recipe, rounds in found.items():
        columns = [[statistics.median(x[name][kind] for x in rounds) for kind in (0, 1)] for name in STAGES]
        columns.append([statistics.median(sum(x[name][kind] for name in STAGES) for x in rounds) for kind in (0, 1)])
        print(f"{recipe:18}" + "".join(f"{f'{cpu:.1f} ({wall:.1f})':>16}" for cpu, wall in columns))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def export_once(checkpoint: Path, canvas_hw: tuple[int, int] | None) -> dict[str, list[float]]:
    """Processor seconds and wall seconds of each stage of exporting a checkpoint in this process."""
    times: dict[str, list[float]] = {}
    begun = [0.0, time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - _started())]

    def ended(stage: str) -> None:
        now = [time.process_time(), time.time()]
        times[stage] = [now[0] - begun[0], now[1] - begun[1]]
        begun[:] = now

    from export.export_step import publish_export  # noqa: F401  # what the command imports
    from export.graph import checkpoint as graph
    from export.graph.shapes import input_shapes
    from export.verification.checkpoint import verify_export
    from train.checkpoint import load_detector

    loaded = load_detector(checkpoint)
    shapes = input_shapes(loaded.config.preprocess, 16, tuple(canvas_hw) if canvas_hw else None)
    ended("import")
    trace = graph.trace

    def timed_trace(*arguments: object) -> object:
        model = trace(*arguments)  # type: ignore[arg-type]
        ended("trace")
        return model

    graph.trace = timed_trace  # type: ignore[assignment]
    path = checkpoint.with_suffix(".onnx")
    path.write_bytes(graph.checkpoint_to_graph(loaded, shapes))
    ended("write")
    failed = [check for check in verify_export(loaded, path, ()) if not check.passed]
    ended("verify")
    assert not failed, failed
    return times


def _started() -> float:
    """When this process started, in seconds since the system did."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
