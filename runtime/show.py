"""Draw detections beside ground truth, image by image.

python -m runtime.evaluate model.onnx --annotations val.json --images val/ --results-out results.json
python -m runtime.show results.json --annotations val.json --images val/ --out shown --count 12
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .bounds import Fraction, Positive, argument
from .coco import CocoDataset, Problems, Results, load_coco, load_results
from .coco.dataset import add_outside_argument
from .coco.result_doubts import with_doubts
from .coco.results import known_results, results_to_detections, take
from .coco.results_parquet import SUFFIX as PARQUET
from .coco.results_parquet import load_parquet
from .command_names import program
from .command_parser import CommandParser
from .draw import draw_side_by_side, encode_jpeg
from .errors import run_main
from .files import atomic_write
from .images import ImageError
from .images.limit import add_limit_argument, max_pixels
from .outputs import check_outputs
from .terminal import printable


def draw_results(results: Results, dataset: CocoDataset, out: Path, count: int, min_score: float) -> list[Path]:
    """Write one drawing for each of `count` images, evenly spread over the data set, and return their paths.

    An image that cannot be read is reported and left out. Raises CocoError for results of other images or categories
    than the data set's, ImageError where no image can be read, OutputError where a drawing would replace an image.
    """
    left_out = Problems()
    lines, results = results.problems, known_results(results, dataset.image_ids, dataset.category_ids, left_out)
    for line in (*lines, *left_out.lines()):
        print(f"warning: {printable(line)}", file=sys.stderr)
    written, problems = [], []
    chosen = drawn_images(dataset, out, count)
    check_outputs([dataset.json_path, *map(dataset.path, range(len(dataset)))], {"--out": chosen.values()})
    for index, path in chosen.items():
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
        atomic_write(path, encode_jpeg(drawing))
        written.append(path)
    if not written:
        raise ImageError(f"none of the images could be read; the first: {problems[0]}")
    return written


def drawn_images(dataset: CocoDataset, out: Path, count: int) -> dict[int, Path]:
    """The indices of `count` images, evenly spread over the data set, and where their drawings lie in `out`."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist()
    return {
        index: out / f"{Path(dataset.file_names[index]).stem}_{int(dataset.image_ids[index])}.jpg" for index in chosen
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises UserError."""
    parser = CommandParser(prog=program("runtime.show"), description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, help="COCO results (.json, .parquet), as runtime.evaluate --results-out writes them"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotation file")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    add_outside_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the drawings")
    parser.add_argument("--count", type=argument(Positive), default=12, help="number of images to draw (%(default)s)")
    parser.add_argument("--score", type=argument(Fraction), default=0.5, help="lowest score to draw, 0–1 (%(default)s)")
    add_limit_argument(parser)
    options = parser.parse_args(arguments)
    dataset = load_coco(options.annotations, options.images, allow_outside=options.allow_outside)
    dataset = replace(dataset, max_pixels=max_pixels(options.max_megapixels))
    check_outputs([options.results], {"--out": drawn_images(dataset, options.out, options.count).values()})
    load = load_parquet if options.results.suffix.lower() == PARQUET else load_results
    for line in dataset.problems:
        print(f"warning: {printable(f'{options.annotations}: {line}')}", file=sys.stderr)
    results = with_doubts(load(options.results, dataset), dataset, options.results)
    written = draw_results(results, dataset, options.out, options.count, options.score)
    print(f"{len(written)} images in {options.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
