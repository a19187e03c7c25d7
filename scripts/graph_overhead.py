"""What postprocessing and NMS cost inside the graph: the deployed file against its bare network, in ONNX Runtime.

    .venv/bin/python scripts/graph_overhead.py [--canvas 800 1344] [--batches 1 4] [--json overhead.json]

The bare network is the same file, cut where its dense maps are (class logits, box codes, centerness of every level):
its outputs are those maps, and the nodes behind them are gone. Both run in turn (A B A B …) in one process, in sessions
with the runtime's own settings; ratios are medians over rounds. Weights are random, scores COCO-like
(`random_detectors`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from random_detectors import our_model, photographs

from export.graph import dense_names
from export.onnx_file import with_outputs
from runtime.backends.options import BackendOptions
from runtime.backends.ort import OrtBackend
from runtime.backends.ort_session import open_session
from runtime.files import atomic_write
from train.checkpoint import load_detector

RECIPE = "atss_r50_fpn_1x"


def bare_network(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model up to its inner values `names`, which become its only outputs."""
    visible = with_outputs(model, names)
    if visible is None:
        sys.exit("error: the dense maps are not in the graph under their names")
    graph = visible.graph
    kept = [output for output in graph.output if output.name in names]
    del graph.output[:]
    graph.output.extend(kept)
    needed, nodes = set(names), []
    for node in reversed(graph.node):  # in topological order
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    used = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    weights = [w for w in graph.initializer if w.name in needed]
    inputs = [i for i in graph.input if i.name in needed]
    for field, values in ((graph.node, used), (graph.initializer, weights), (graph.input, inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return visible


def open_both(path: Path, bare: Path, threads: int) -> tuple[OrtBackend, onnxruntime.InferenceSession]:
    options = BackendOptions(backend="cpu", threads=threads)
    return OrtBackend(path, options), open_session(onnxruntime, bare, options)


def compare(
    backend: OrtBackend, network: onnxruntime.InferenceSession, feed: tuple[np.ndarray, np.ndarray], rounds: int
) -> dict[str, object]:
    seconds: dict[str, list[float]] = {"deployed": [], "bare": []}
    found = 0
    for round_number in range(rounds + 1):
        started = time.perf_counter()
        raw = backend.infer(*feed)
        between = time.perf_counter()
        network.run(None, {"images": feed[0]})
        ended = time.perf_counter()
        found = int(raw.num_detections.sum())
        if round_number:  # the first warms up
            seconds["deployed"].append(between - started)
            seconds["bare"].append(ended - between)
    ratios = [a / b for a, b in zip(seconds["deployed"], seconds["bare"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "batch": len(feed[0]),
        "detections": found,
        "exact": int(raw.nms_exact.sum()),
        "candidates": int((raw.candidate_scores > 0).sum()),
        "median_seconds": medians,
        "ratio": statistics.median(ratios),
        "ratio_of_medians": medians["deployed"] / medians["bare"],
        "ratio_of_least": min(seconds["deployed"]) / min(seconds["bare"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--canvas", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=Path, help="folder of photographs (default: soft blobs)")
    parser.add_argument("--keep", type=Path, help="folder that keeps the model between runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        height, width = options.canvas
        images = photographs(options.images, max(options.batches), height, width)
        path = our_model(folder, RECIPE, images[:2])
        bare = path.with_suffix(".bare.onnx")
        names = dense_names(load_detector(path.with_suffix(".pt")).config.model)
        atomic_write(bare, bare_network(onnx.load(path), names).SerializeToString())
        sizes = np.full((len(images), 2), (height, width), np.int32)
        sessions = open_both(path, bare, options.threads)
        results = [compare(*sessions, (images[:b], sizes[:b]), options.rounds) for b in options.batches]
    conditions = {
        "model": RECIPE,
        "canvas": f"{height}×{width}",
        "threads": options.threads,
        "rounds": options.rounds,
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    for r in results:
        seconds = r["median_seconds"]
        print(
            f"batch {r['batch']}: deployed {seconds['deployed']:.3f} s, bare {seconds['bare']:.3f} s, ratio "
            f"{r['ratio']:.3f} (of the least times {r['ratio_of_least']:.3f}); {r['candidates']} candidates, "
            f"{r['detections']} detections, {r['exact']} of {r['batch']} exact"
        )
    if options.json is not None:
        atomic_write(options.json, json.dumps({"conditions": conditions, "results": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
