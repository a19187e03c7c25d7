"""How often the intervals of `runtime.analysis.intervals` cover what they should, on data sets whose AP is known.

    python benchmarks/interval_coverage.py --images 50 200 1000 --repeats 200 --json runs/coverage.json

Many data sets of a size are drawn, each with the results of two detectors, the second a little better. Printed is the
share of intervals that cover the mean AP of data sets of this size (over all that were drawn), the AP with endless
images, and the difference between the detectors with endless images; 95 % is the aim. Beside them is the bias: mean AP
minus that with endless images. There is one class of 2 objects per image, and ten of 0.1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.known_ap import Population, draw
from runtime.analysis.intervals import Interval, bootstrap
from runtime.files import atomic_write

POPULATIONS = (Population(classes=1, objects=2.0), Population(classes=10, objects=0.1, wrong=(0.025, 0.1)))


def better(population: Population) -> Population:
    """The same images, seen by a detector that finds more and fits better."""
    return dataclasses.replace(population, found=(0.93, 0.55), quality=2.3)


def measure(population: Population, images: int, repeats: int, resamples: int) -> dict[str, Any]:
    """Draw `repeats` data sets and find the intervals of each."""
    pair = (population, better(population))
    true = [each.true_ap() for each in pair]
    values, differences = [], []
    for seed in range(repeats):
        drawn = draw(pair, images, seed)
        first, second = bootstrap(drawn.truth, drawn.results, resamples=resamples, seed=seed)
        values.append(first.metrics["AP"])
        differences.append((second.difference or {})["AP"])
    mean = float(np.mean([interval.value for interval in values]))
    return {
        "classes": population.classes,
        "objects_per_image_and_class": population.objects,
        "images": images,
        "repeats": repeats,
        "resamples": resamples,
        "true_ap": true[0],
        "bias": mean - true[0],
        "covers_ap_of_this_size": share(values, mean),
        "covers_true_ap": share(values, true[0]),
        "covers_true_difference": share(differences, true[1] - true[0]),
        "mean_width": float(np.mean([interval.high - interval.low for interval in values])),
        "mean_width_of_difference": float(np.mean([interval.high - interval.low for interval in differences])),
    }


def share(intervals: list[Interval], target: float) -> float:
    """The share of intervals that cover the target."""
    return float(np.mean([interval.low <= target <= interval.high for interval in intervals]))


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 200, 1000], metavar="N", help="sizes")
    parser.add_argument("--repeats", type=int, default=200, help="data sets of each size (%(default)s)")
    parser.add_argument("--resamples", type=int, default=200, help="draws for an interval (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args()
    rows = []
    error = 100 * math.sqrt(0.95 * 0.05 / options.repeats)
    print(f"{options.repeats} data sets of each size; a share of 95 % has a standard error of {error:.1f} points")
    for population in POPULATIONS:
        for images in options.images:
            row = measure(population, images, options.repeats, options.resamples)
            rows.append(row)
            print(
                f"{row['classes']:3} classes, {images:5} images: AP of this size covered in "
                f"{row['covers_ap_of_this_size']:.1%}, AP with endless images ({row['true_ap']:.3f}, bias "
                f"{row['bias']:+.3f}) in {row['covers_true_ap']:.1%}, difference in "
                f"{row['covers_true_difference']:.1%}; widths {row['mean_width']:.3f} and "
                f"{row['mean_width_of_difference']:.3f}",
                flush=True,
            )
    if options.json is not None:
        atomic_write(options.json, json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
