"""Measures what postprocessing and NMS cost inside the graph: the deployed file against its bare network.

    python benchmarks/graph_overhead.py [--canvas 800 1344] [--batches 1 4] [--json overhead.json]

The file is cut at its dense maps (class logits, box codes, centerness of every level). The bare network outputs these
maps, and the rest takes them as inputs. File, network and rest alternate (A B C A B C …) in one process, in ONNX
Runtime sessions with the runtime's own settings; ratios are medians over rounds. The time of the rest alone shows the
difference even where the machine is too noisy to compare the other two. Weights are random, scores COCO-like
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
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from random_detectors import our_model, photographs

from export.graph.deployable import dense_names
from runtime.backends.options import BackendOptions
from runtime.backends.ort.backend import OrtBackend
from runtime.backends.ort.session import open_session
from runtime.files import atomic_write
from train.checkpoint import load_detector

RECIPE = "atss_r50_fpn_1x"
RESTS = 5  # runs of the rest in a round


class Parts(NamedTuple):
    """Sessions of the deployed file and of its two parts, and the names of the values between the parts."""

    deployed: OrtBackend
    network: onnxruntime.InferenceSession
    rest: onnxruntime.InferenceSession
    between: list[str]


def cut(model: onnx.ModelProto, dense: list[str]) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
    """Cut the model: the bare network, which outputs the dense maps; the rest; the names of the values between them."""
    needed, first = set(dense), []
    for node in reversed(model.graph.node):  # in topological order
        if needed & set(node.output):
            needed |= set(node.input)
            first.append(node)
    network_makes = {name for node in first for name in node.output} | {given.name for given in model.graph.input}
    rest = [node for node in model.graph.node if not network_makes & set(node.output)]
    between = sorted({name for node in rest for name in node.input if name in network_makes})
    outputs = [value.name for value in model.graph.output]
    return part(model, first[::-1], [], dense), part(model, rest, between, outputs), between


def part(model: onnx.ModelProto, nodes: list[Any], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """A model of some nodes. Its inputs are `inputs` and the model's inputs that the nodes use."""
    used = {name for node in nodes for name in node.input}
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    given = [known[value.name] for value in model.graph.input if value.name in used or value.name in inputs]
    given += [typed(name, model) for name in inputs if name not in {value.name for value in given}]
    made = onnx.helper.make_graph(
        nodes,
        "part",
        given,
        [known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [weights for weights in model.graph.initializer if weights.name in used],
    )
    return onnx.helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)


def typed(name: str, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The value's type without its shape: the exporter's names of dimensions are unknown in a part."""
    value = next(value for value in model.graph.value_info if value.name == name)
    rank = [None] * len(value.type.tensor_type.shape.dim)
    return onnx.helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, rank)


def open_parts(path: Path, dense: list[str], threads: int) -> Parts:
    """Cut the file, write the two parts beside it and open sessions of all three."""
    options = BackendOptions(backend="cpu", threads=threads)
    network, rest, between = cut(onnx.load(path), dense)
    files = {"network": network, "rest": rest}
    for name, model in files.items():
        atomic_write(path.with_suffix(f".{name}.onnx"), model.SerializeToString())
    sessions = [open_session(onnxruntime, path.with_suffix(f".{name}.onnx"), options) for name in files]
    return Parts(OrtBackend(path, options), sessions[0], sessions[1], between)


def compare(path: Path, parts: Parts, feed: dict[str, np.ndarray], rounds: int) -> dict[str, object]:
    """Milliseconds of file, network and rest over alternating rounds, and their ratios."""
    between = values_between(path, parts.between, feed)
    seconds: dict[str, list[float]] = {"deployed": [], "network": [], "rest": []}
    for round_number in range(rounds + 1):
        times = [time.perf_counter()]
        raw = parts.deployed.infer(**feed)
        times.append(time.perf_counter())
        parts.network.run(None, {"images": feed["images"]})
        times.append(time.perf_counter())
        for _ in range(RESTS):
            parts.rest.run(None, between)
        times.append(time.perf_counter())
        if round_number:  # the first warms up
            spent = np.diff(times) / (1, 1, RESTS)
            for values, value in zip(seconds.values(), spent.tolist(), strict=True):
                values.append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    least = {name: min(values) for name, values in seconds.items()}
    return {
        "batch": len(feed["images"]),
        "candidates": int((raw.candidate_scores > 0).sum()),
        "detections": int(raw.num_detections.sum()),
        "exact": int(raw.nms_exact.sum()),
        "median_seconds": medians,
        "least_seconds": least,
        "deployed_to_network": statistics.median(
            a / b for a, b in zip(seconds["deployed"], seconds["network"], strict=True)
        ),
        "least_deployed_to_least_network": least["deployed"] / least["network"],
        "network_and_rest_to_network": statistics.median(
            (a + b) / a for a, b in zip(seconds["network"], seconds["rest"], strict=True)
        ),
    }


def values_between(path: Path, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values that feed the rest, from a run of the whole file."""
    model = onnx.load(path)
    given = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in given]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    found = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(inner, feed)
    return dict(zip(inner, found, strict=True)) | {name: feed[name] for name in names if name in given}


def main() -> int:
    """Make the model and compare it at every batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--canvas", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=Path, help="folder of photographs (default: soft blobs)")
    parser.add_argument("--keep", type=Path, help="keep the model in this folder between runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        height, width = options.canvas
        images = photographs(options.images, max(options.batches), height, width)
        path = our_model(folder, RECIPE, images[:2])
        model = load_detector(path.with_suffix(".pt")).config.model
        parts = open_parts(path, dense_names(model.pyramid.levels, model.head.has_centerness), options.threads)
        results = []
        for batch in options.batches:
            sizes = np.full((batch, 2), (height, width), np.int32)
            results.append(compare(path, parts, {"images": images[:batch], "image_sizes": sizes}, options.rounds))
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
            f"batch {r['batch']}: deployed {seconds['deployed']:.3f} s, network {seconds['network']:.3f} s, the rest "
            f"alone {seconds['rest']:.3f} s; {r['candidates']} candidates, {r['detections']} detections, {r['exact']} "
            f"of {r['batch']} exact\n  deployed / network {r['deployed_to_network']:.3f}, of the least times "
            f"{r['least_deployed_to_least_network']:.3f}; (network + rest) / network "
            f"{r['network_and_rest_to_network']:.3f}"
        )
    if options.json is not None:
        atomic_write(options.json, json.dumps({"conditions": conditions, "results": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
