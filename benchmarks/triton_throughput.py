"""Images/s of a served model, with Triton's dynamic batching and without, beside `Detector` on the same machine.

    scripts/triton_test.sh                     # once: installs a server, and runs this
    python benchmarks/triton_throughput.py model.onnx --images photos/ --clients 1 16 --json runs/triton.json

All sides take JPEG files to detections. `Detector` decodes and detects in this process, in its pipeline. The server's
model runs the network itself (`--network inline`) in ONNX Runtime on the CPU, like `Detector`, and gets each file's
bytes over gRPC from as many clients at once as `--clients` says. The sides alternate (A B C … A B C …); ratios are
medians over rounds of the first side's time over a side's. Batches are the server's own count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from triton_server import TritonServer, served

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.triton.config import ServingOptions
from export.triton.repository import write_repository
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.images.decoding import SUFFIXES
from runtime.machine.processor import processors
from runtime.triton import TritonDetector

MODELS = {"batched": "dynamic batching", "single": "batches of 1"}


@dataclass(frozen=True)
class Side:
    """One way to detect on all images, with what its rounds gave."""

    name: str
    run: Callable[[], int]  # how many detections it found
    seconds: list[float]


def write_both(model: Path, root: Path, options: ServingOptions) -> None:
    """The model twice: with the file's largest batch, and with batches of 1 (`--batch-max 1`)."""
    write_repository(model, root, "batched", options)
    write_repository(model, root, "single", replace(options, batch_max=1))


def count_found(results: Sequence[object]) -> int:
    """Detections of all images. Raises the first error."""
    total = 0
    for found in results:
        if isinstance(found, UserError):
            raise found
        total += len(found)  # type: ignore[arg-type]
    return total


def local_side(detector: Detector, files: Sequence[Path], batch: int) -> Side:
    """A side that detects in this process."""
    return Side(f"Detector, batch {batch}", lambda: count_found(list(detector.stream(files, batch, wait_s=None))), [])


def served_side(detector: TritonDetector, data: Sequence[bytes], name: str, clients: int) -> Side:
    """A side whose clients each send one file after the other."""

    def run() -> int:
        with ThreadPoolExecutor(clients) as pool:
            return count_found(
                [found for one in pool.map(lambda one: detector.detect_encoded([one]), data) for found in one]
            )

    return Side(f"{MODELS[name]}, {clients} client{'s' if clients > 1 else ''}", run, [])


def count_batches(server: TritonServer, model: str, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Images and batches that a model has run since `before`."""
    with urllib.request.urlopen(f"http://localhost:{server.http}/v2/models/{model}/stats") as answer:
        stats = json.load(answer)["model_stats"][0]
    return int(stats["inference_count"]) - before[0], int(stats["execution_count"]) - before[1]


def main() -> None:
    """Measure, and print a table with its conditions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="exported file")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--num-images", type=int, default=64, help="images a round (%(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16], help="requests at once (1 16)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1], help="of the detector's pipeline (8 1)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    found_here = (path for path in sorted(options.images.iterdir()) if path.suffix.lower() in SUFFIXES)
    files = list(found_here)[: options.num_images]
    data = [file.read_bytes() for file in files]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        serving = ServingOptions(placement="inline", backend="cpu")
        write_both(options.model, Path(folder, "repository"), serving)
        with (
            served(Path(folder, "repository"), Path(folder)) as server,
            Detector(options.model, backend="cpu") as local,
            TritonDetector(server.url("batched")) as batched,
            TritonDetector(server.url("single")) as single,
        ):
            sides = [local_side(local, files, batch) for batch in options.batch]
            batches: dict[str, list[float]] = {}
            for clients in options.clients:
                sides += [served_side(d, data, name, clients) for name, d in (("batched", batched), ("single", single))]
            found = {side.name: side.run() for side in sides}  # warms up
            if len(set(found.values())) != 1:
                raise SystemExit(f"error: the sides don't detect the same: {found}")
            for _ in range(options.rounds):
                for side in sides:
                    before = count_batches(server, "batched")
                    started = time.perf_counter()
                    side.run()
                    side.seconds.append(time.perf_counter() - started)
                    images, runs = count_batches(server, "batched", before)
                    if runs:
                        batches.setdefault(side.name, []).append(images / runs)
            description = f"{local.backend.description}; {batched.backend.description}"
    rows = []
    for side in sides:
        ratios = [a / b for a, b in zip(sides[0].seconds, side.seconds, strict=True)]
        rows.append(
            {
                "side": side.name,
                "images_per_second": len(files) / statistics.median(side.seconds),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "mean_batch": statistics.mean(batches[side.name]) if side.name in batches else None,
            }
        )
    print(f"{options.model.name}, {len(files)} images, {sum(found.values()) // len(found)} detections; {description}")
    print(
        f"{options.rounds} alternating rounds after one to warm up; {processors()} processors, load {load:.1f} before;"
        f" queue delay {serving.queue_delay_us / 1000:g} ms"
    )
    print(f"{'':<30}{'img/s':>8}{'× first':>12}{'range':>14}{'mean batch':>12}")
    for row in rows:
        batch = "" if row["mean_batch"] is None else f"{row['mean_batch']:.1f}"
        spread = f"{row['ratio_low']:.2f}–{row['ratio_high']:.2f}"
        print(f"{row['side']:<30}{row['images_per_second']:>8.1f}{row['ratio']:>12.2f}{spread:>14}{batch:>12}")
    if options.json is not None:
        conditions = {"description": description, "load_before": load, "serving": asdict(serving)}
        atomic_write(options.json, json.dumps({"rows": rows, "conditions": conditions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
