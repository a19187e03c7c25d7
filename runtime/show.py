"""Draw detections beside ground truth, image by image.

python -m runtime.evaluate model.onnx --annotations val.json --images val/ --results-out results.json
python -m runtime.show results.json --annotations val.json --images val/ --out shown --count 12
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .coco import CocoDataset, Problems, Results, load_coco, load_results
from .coco.results import known_results, results_to_detections, take
from .coco.results_parquet import SUFFIX as PARQUET
from .coco.results_parquet import load_parquet
from .command_names import program
from .draw import draw_side_by_side, encode_jpeg
from .errors import UserError, run_main
from .files import atomic_write
from .images import ImageError
from .terminal import printable


def draw_results(results: Results, dataset: CocoDataset, out: Path, count: int, min_score: float) -> list[Path]:
    """Write one drawing for each of `count` images, evenly spread over the data set, and return their paths.

    An image that cannot be read is reported and left out. Raises CocoError for results of other images or categories
    than the data set's, ImageError where no image can be read.
    """
    results = known_results(results, dataset.image_ids, dataset.category_ids, Problems())
    written, problems = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist():
        try:
            image = dataset.image(index)
        except ImageError as error:
            problems.append(str(error))
            print(f"warning: skipped {printable(error)}", file=sys.stderr)
            continue
        image_id = int(dataset.image_ids[index])
        boxes, labels, _ = dataset.annotations(index)
        found = results_to_detections(take(results, results.image_ids == image_id), dataset.category_ids)
        drawing = draw_side_by_side(image, found, boxes, labels, dataset.classes, min_score)
        path = out / f"{Path(dataset.file_names[index]).stem}_{image_id}.jpg"
        atomic_write(path, encode_jpeg(drawing))
        written.append(path)
    if not written:
        raise ImageError(f"none of the images could be read; the first: {problems[0]}")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    parser = argparse.ArgumentParser(prog=program("runtime.show"), description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, help="COCO results (.json, .parquet), as runtime.evaluate --results-out writes them"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drawings")
    parser.add_argument("--count", type=int, default=12, help="number of images to draw (%(default)s)")
    parser.add_argument("--score", type=float, default=0.5, help="lowest score to draw, 0–1 (%(default)s)")
    options = parser.parse_args(arguments)
    if options.count < 1:
        raise UserError(f"--count is {options.count}, expected at least 1")
    dataset = load_coco(options.annotations, options.images)
    load = load_parquet if options.results.suffix.lower() == PARQUET else load_results
    written = draw_results(load(options.results), dataset, options.out, options.count, options.score)
    print(f"{len(written)} images in {options.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
