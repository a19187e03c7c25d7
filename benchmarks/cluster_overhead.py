"""What sharing an evaluation out to a Ray cluster costs: seconds in one process and on actors, and the AP of both.

    python benchmarks/cluster_overhead.py model.onnx --annotations val.json --images val/ --actors 2

The overhead is Ray's start, the actors' start (imports, opening the model), and handing results over. The first two do
not depend on the number of images. Raises an error where the results differ in anything.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.backends.options import add_backend_arguments, backend_options
from runtime.cluster.connection import connected
from runtime.cluster.options import ClusterOptions, add_cluster_arguments
from runtime.coco import load_coco_with_truth, score
from runtime.coco.cluster import detect_on_cluster
from runtime.coco.run import RunSettings, detect_dataset
from runtime.errors import UserError, run_main
from runtime.machine.processor import processors
from runtime.model_spec import ModelSpec, open_model


def main() -> None:
    """The command line. Raises UserError where the two differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=ModelSpec.parse)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    add_backend_arguments(parser)
    add_cluster_arguments(parser)
    options = parser.parse_args()
    cluster = ClusterOptions(options.ray or "local", options.actors)
    dataset, truth = load_coco_with_truth(options.annotations, options.images)
    settings = RunSettings(options.batch)
    seconds = {}
    clock = time.perf_counter
    started = clock()
    with open_model(options.model, **backend_options(options)) as detector:
        alone = detect_dataset(detector, dataset, settings)
    seconds["one process, model opened"] = clock() - started
    started = clock()
    with connected(cluster.address):
        seconds["Ray's start"] = clock() - started
        on_actors = partial(detect_on_cluster, options.model, dataset, cluster, lambda _: settings)
        began = clock()
        together = on_actors(options=backend_options(options))
        seconds["on actors, probe and their start included"] = clock() - began
        seconds["of which from the first task to the last"] = together.speed.seconds
    figures = [score(truth, run.results, run.image_ids) for run in (alone, together)]
    if figures[0] != figures[1] or list(alone.results) != list(together.results):
        raise UserError("the run on actors found something else than one process")
    print(f"{processors()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{len(alone.image_ids)} images, AP {100 * figures[0].values['AP']:.2f} both times, results identical")
    for name, value in seconds.items():
        print(f"{name:<45} {value:6.1f} s")


if __name__ == "__main__":
    run_main(main)
