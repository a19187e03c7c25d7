"""Write what tidecv finds in random data, for the tests, and compare it with `find_errors` on files.

    python benchmarks/tide_goldens.py -o tests/runtime/analysis/tide_goldens.json
    python benchmarks/tide_goldens.py --compare ANNOTATIONS RESULTS

tidecv 1.0.1 asks for opencv-python, which clashes with opencv-python-headless, so no extra has it: install it with
`pip install --no-deps tidecv==1.0.1`, and pandas and seaborn. Values are in points (0–100). With --compare, AP differs
where classes without objects have detections, or where scores are equal (see `runtime/analysis/errors.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.analysis.errors import ERROR_KINDS, SPECIAL_KINDS, find_errors
from runtime.coco import parse_ground_truth, parse_results
from runtime.files import atomic_write
from tests.support.tide_loop import random_data

SHORT = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FalsePos", "FalseNeg")
NAMES = dict(zip(SHORT, (*ERROR_KINDS, *SPECIAL_KINDS), strict=True))
SEEDS, THRESHOLDS = range(4), (0.5, 0.75)


def by_tidecv(content: dict[str, Any], results: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """AP, what mending each kind gains, and how many errors each has (ignored detections too), by tidecv."""
    # It only asks for the folder of its downloads.
    sys.modules.setdefault("appdirs", types.SimpleNamespace(user_data_dir=lambda *_, **__: "."))  # type: ignore[arg-type]
    from tidecv import TIDE, Data

    truth, found = Data("truth"), Data("results")
    for image in content["images"]:
        truth.add_image(image["id"], image["file_name"])
    for entry in content["annotations"]:
        add = truth.add_ignore_region if entry["iscrowd"] else truth.add_ground_truth
        add(entry["image_id"], entry["category_id"], entry["bbox"])
    for result in results:
        found.add_detection(result["image_id"], result["category_id"], result["score"], result["bbox"])
    run = TIDE().evaluate(truth, found, pos_threshold=threshold, mode=TIDE.BOX)
    errors = {**run.fix_main_errors(), **run.fix_special_errors()}
    worth = {NAMES[error.short_name]: float(value) for error, value in errors.items()}
    counts = {NAMES[error.short_name]: count for error, count in run.count_errors().items()}
    return {"ap": float(run.ap), "worth": worth, "counts": counts}


def main() -> int:
    """Write the goldens, or print both sides of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="write the goldens of random data here")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("ANNOTATIONS", "RESULTS"))
    options = parser.parse_args()
    if options.output is not None:
        goldens = [
            {
                "seed": seed,
                "crowds": crowds,
                "iou": threshold,
                **by_tidecv(*random_data(seed, crowds=crowds), threshold),
            }
            for seed in SEEDS
            for crowds in (False, True)
            for threshold in THRESHOLDS
        ]
        atomic_write(options.output, json.dumps(goldens, indent=1) + "\n")
    if options.compare is not None:
        content, results = (json.loads(path.read_text(encoding="utf-8")) for path in options.compare)
        theirs = by_tidecv(content, results, 0.5)
        ours = find_errors(parse_ground_truth(content), parse_results(results, "results"))
        print(f"{'':18}{'ours':>9}{'tidecv':>9}")
        print(f"{'AP50':18}{100 * ours.ap50:9.3f}{theirs['ap']:9.3f}")
        for name, value in theirs["worth"].items():
            print(f"{name:18}{100 * ours.worth50[name]:9.3f}{value:9.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
