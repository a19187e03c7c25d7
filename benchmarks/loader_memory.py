"""Measures how much memory each loader process adds for an index of COCO's size, on Linux with forked processes.

    python benchmarks/loader_memory.py [--images 120000] [--boxes 860000] [--workers 4] [--reads 20000] [--names tuple]

Nothing is read from disk. Each process walks through its part of the index as the training stream does, and reports how
much its private memory (/proc/self/smaps_rollup) grew. Private memory is not shared with the other processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.coco import CocoDataset, FileNames
from runtime.manifest import Preprocess
from train.config import Augment
from train.data.loader import TrainingStream


def synthetic(images: int, boxes: int, names: Callable[[Iterable[str]], Sequence[str]]) -> CocoDataset:
    """An index of this size without image files; `names` is the container of the file names."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(boxes, np.full(images, 1 / images))
    corner = rng.uniform(0, 300, (boxes, 2)).astype(np.float32)
    return CocoDataset(
        json_path=Path("synthetic.json"),
        root=Path("train2017"),
        image_ids=np.arange(images, dtype=np.int64),
        file_names=names(f"{number:012d}.jpg" for number in range(images)),
        sizes_hw=rng.integers(300, 640, (images, 2)).astype(np.int32),
        classes=tuple(f"class {number}" for number in range(80)),
        category_ids=tuple(range(1, 81)),
        boxes=np.concatenate([corner, corner + 50], axis=1),
        labels=rng.integers(0, 80, boxes),
        crowd=rng.random(boxes) < 0.01,
        ignore=np.zeros(boxes, bool),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        problems=(),
        written_image_ids=None,
        written_category_ids=None,
    )


def private_mb() -> float:
    """This process's private memory in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def walk(stream: TrainingStream, numbers: range) -> None:
    """Read the index as a loader process reads it."""
    for n in numbers:
        index = stream.index_of(n, 0)
        boxes, labels, crowd = stream.dataset.annotations(index)
        _ = boxes[~crowd].copy(), labels[~crowd].copy(), stream.dataset.path(index), stream.dataset.size_hw(index)


def measure(dataset: CocoDataset, workers: int, reads: int) -> list[float]:
    """The growth of private memory in MB of each of `workers` forked processes while it reads."""
    stream = TrainingStream(dataset, Augment(), Preprocess(800, 1333), False, 0, group=16)
    stream.index_of(0, 0)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def work(rank: int) -> None:
        before = private_mb()
        walk(stream, range(rank, reads * workers, workers))
        answers.put(private_mb() - before)
        os._exit(0)

    started = [context.Process(target=work, args=(rank,)) for rank in range(workers)]
    for process in started:
        process.start()
    grown = [answers.get() for _ in started]
    for process in started:
        process.join()
    return grown


def main() -> None:
    """Build the index, measure the processes and print the growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--reads", type=int, default=20_000, help="reads of each process")
    parser.add_argument("--names", choices=("compact", "tuple"), default="compact", help="container of the file names")
    options = parser.parse_args()
    dataset = synthetic(options.images, options.boxes, FileNames if options.names == "compact" else tuple)
    grown = measure(dataset, options.workers, options.reads)
    print(
        f"{options.images} images, {options.boxes} boxes; private MB added by each process:",
        *(f"{g:.1f}" for g in grown),
    )


if __name__ == "__main__":
    main()
