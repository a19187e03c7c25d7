"""Checks that memory, file handles and threads don't grow over many images through the pipeline.

    python benchmarks/soak.py model.onnx --json runs/soak.json            # 20,000 images
    python benchmarks/soak.py model.onnx --images photos/ --num-images 200000

Without --images, JPEGs of many sizes, upright and landscape, are made in a temporary folder. One image in 50 can't be
read. This process's figures are taken every 500 images. Growth is the minimum of the last quarter minus the minimum of
the second quarter (the first quarter fills caches). The exit code is 1 if anything grew. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.detector import Detector
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.images.sources import find_sources
from runtime.machine.processor import processors

EVERY = 500
BAD_EVERY = 50
# Of growth over half the run. A leak of one image's canvas in a hundred would be 30 MB. A pool starts its last
# threads when it first has work for all of them, which a busy machine may put off.
ALLOWED = {"memory_mb": 8.0, "handles": 0.0, "threads": 2.0}


def made_images(folder: Path, count: int = 96) -> list[Path]:
    """JPEGs of blurred noise in 24 sizes, of which half are upright."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        long, short = 320 + 16 * (number % 12), 240 + 8 * (number % 7)
        size_hw = (long, short) if number % 2 else (short, long)
        image = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), size_hw[::-1])
        paths.append(folder / f"{number:03}.jpg")
        cv2.imwrite(str(paths[-1]), image)
    return paths


def endless(paths: Sequence[Path], bad: Path) -> Iterator[Path]:
    """The images over and over; each BAD_EVERY-th path is the broken file."""
    for number, path in enumerate(cycle(paths)):
        yield bad if number % BAD_EVERY == BAD_EVERY - 1 else path


def soak(detector: Detector, paths: Sequence[Path], bad: Path, images: int, batch: int, every: int) -> dict[str, Any]:
    """Run a stream of `images` images; returns the number of detections and the process's state along the way."""
    samples: list[dict[str, float]] = []
    found = errors = 0
    started = time.perf_counter()
    for done, result in enumerate(detector.stream(islice(endless(paths, bad), images), batch), start=1):
        if isinstance(result, UserError):
            errors += 1
        else:
            found += len(result)
        if done % every == 0:
            samples.append({"images": done, **state()})
    seconds = time.perf_counter() - started
    return {
        "images": images,
        "errors": errors,
        "detections": found,
        "seconds": seconds,
        "images_per_second": images / seconds,
        "growth": growth(samples),
        "samples": samples,
        "after": state(),
    }


def state() -> dict[str, float]:
    """This process's resident memory in MB, open handles and threads."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "handles": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def growth(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Minimum of the last quarter minus the second quarter's: a leak raises it, memory in momentary use doesn't."""
    quarter = len(samples) // 4
    if quarter == 0:
        raise UserError(f"{len(samples)} samples are too few to tell growth; run on more images")
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    names = [name for name in samples[0] if name != "images"]
    return {name: min(s[name] for s in last) - min(s[name] for s in second) for name in names}


def has_grown(report: dict[str, Any]) -> bool:
    """Whether any growth exceeds what ALLOWED has for it."""
    return any(report["growth"][name] > allowed for name, allowed in ALLOWED.items())


def main() -> int:
    """Run the stream, print the growth and report it as the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=Path, help="folder of images, repeated as often as needed")
    parser.add_argument("--num-images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        Detector(options.model, backend=options.backend, threads=options.threads) as detector,
    ):
        folder = Path(temporary)
        bad = folder / "bad.jpg"
        bad.write_bytes(b"\xff\xd8\xff\xe0 cut short")
        if options.images is None:
            paths = made_images(folder)
        else:
            paths = [source.path for source in find_sources([options.images], folder) if not source.is_video]
        report = soak(detector, paths, bad, options.num_images, options.batch, EVERY)
        report |= {
            "model": detector.manifest.recipe,
            "backend": detector.backend.description,
            "batch": options.batch,
            "processors": processors(),
        }
    first, last, grown = report["samples"][0], report["samples"][-1], report["growth"]
    print(
        f"{report['images']} images ({report['errors']} unreadable, {report['detections']} detections) in "
        f"{report['seconds']:.0f} s\nmemory {first['memory_mb']:.0f} → {last['memory_mb']:.0f} MB, from the second to "
        f"the last quarter {grown['memory_mb']:+.1f} MB; handles {first['handles']:.0f} → {last['handles']:.0f}; "
        f"threads {first['threads']:.0f} → {last['threads']:.0f}"
    )
    if options.json is not None:
        atomic_write(options.json, json.dumps(report, indent=2) + "\n")
    return int(has_grown(report))


if __name__ == "__main__":
    sys.exit(main())
