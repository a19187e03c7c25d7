"""Counts what stands behind the network in a deployed graph: the nodes, and the longest chain of dependent nodes.

    python benchmarks/graph_size.py model.onnx …
    python benchmarks/graph_size.py [--recipe atss_r50_fpn_1x] [--canvas 800 1344] [--json size.json]

On a GPU each node that isn't fused is a launch of some microseconds, and a chain can't overlap with itself. Counted are
the nodes of postprocessing and NMS; a chain begins at a dense map (class logits, box codes, centerness). Without a
file, a recipe with random weights is exported for every canvas and for one canvas, and both forms of each graph are
counted: for CPUs, as `export.to_onnx` writes it, and for GPUs, as `export.to_trt` builds it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import NamedTuple, get_args

import onnx

from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.forms import for_processor
from export.onnx_model.network import dense_map_names, parse_deployed, postprocessing_nodes
from export.onnx_model.processor import Processor
from runtime.files import atomic_write
from train.build import build_detector, without_weights
from train.checkpoint import Classes, LoadedDetector
from train.config.recipes import RECIPES

CLASSES = 80


class Size(NamedTuple):
    """What stands behind the network."""

    nodes: int
    chain: int  # nodes, each of which needs the one before it


def size_behind_network(model: onnx.ModelProto) -> Size:
    """Count the nodes of postprocessing and NMS, and their longest chain from a dense map."""
    nodes = postprocessing_nodes(model)
    depth = dict.fromkeys(dense_map_names(model), 0)
    for node in nodes:  # in topological order
        before = [depth[name] for name in node.input if name in depth]
        if before:
            depth |= dict.fromkeys(node.output, 1 + max(before))
    return Size(len(nodes), max(depth.values()))


def untrained(recipe: str) -> LoadedDetector:
    """A recipe's detector with random weights."""
    settings = RECIPES[recipe]()
    settings = dataclasses.replace(settings, model=without_weights(settings.model))
    detector = build_detector(settings.model, CLASSES, settings.preprocess).eval()
    classes = Classes(tuple(f"class {n}" for n in range(CLASSES)), tuple(range(1, CLASSES + 1)))
    return LoadedDetector(detector, settings, classes, None, 0, "0" * 64)


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="model.onnx")
    parser.add_argument("--recipe", choices=RECIPES, default="atss_r50_fpn_1x")
    parser.add_argument("--canvas", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    graphs = {str(path): path.read_bytes() for path in options.files}
    if not graphs:
        loaded = untrained(options.recipe)
        for name, canvas in (("every canvas", None), ("one canvas", tuple(options.canvas))):
            shapes = input_shapes(loaded.config.preprocess, 16, canvas)
            graphs[f"{options.recipe}, {name}"] = checkpoint_to_graph(loaded, shapes)
    sizes: dict[str, dict[str, Size]] = {}
    for name, content in graphs.items():
        model, manifest = parse_deployed(content, Path(name))
        print(f"{name}: {len(model.graph.node)} nodes")
        forms = {form: for_processor(model, manifest.thresholds, form) for form in get_args(Processor)}
        sizes[name] = {"as it is": size_behind_network(model)}
        sizes[name] |= {f"for a {form.upper()}": size_behind_network(turned) for form, turned in forms.items()}
        for form, size in sizes[name].items():
            print(f"  {form}: {size.nodes} nodes behind the network, chain of {size.chain}")
    if options.json is not None:
        found = {name: {form: size._asdict() for form, size in forms.items()} for name, forms in sizes.items()}
        atomic_write(options.json, json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
