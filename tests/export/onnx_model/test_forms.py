"""The forms of a graph for CPUs and GPUs: the same function, and few nodes behind the network for GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

from benchmarks.graph_size import size_behind_network
from export.graph.checkpoint import checkpoint_to_graph
from export.graph.shapes import input_shapes
from export.onnx_model.forms import for_processor
from export.onnx_model.network import load_deployed, parse_deployed
from export.onnx_model.processor import Processor
from export.verification.images import make_case, synthetic_images
from runtime.backends.onnx_file import OUTPUT_NAMES
from runtime.backends.ort.backend import OrtBackend
from runtime.manifest import Preprocess, Thresholds
from train.config.recipes import RECIPES

from ...support.systems import narrowed, saved
from ..conftest import Exported, restamp

PAD = (124, 116, 104)
# What postprocessing and NMS of R-50 with 80 classes had in one stage and in blocks: nodes, and the longest chain.
BEFORE = {"every canvas": (833, 227), "one canvas": (701, 219)}


@pytest.mark.parametrize("batch", [1, 3])
def test_both_give_the_same_numbers(batch: int, exported: Exported, tmp_path: Path) -> None:
    model, manifest = load_deployed(exported.model)
    case = make_case(batch, (192, 224), synthetic_images(), PAD)
    found = []
    for processor in get_args(Processor):
        turned = for_processor(model, manifest.thresholds, processor)
        onnx.checker.check_model(turned, full_check=True)
        found.append(OrtBackend(restamp(turned, tmp_path / f"{processor}.onnx")).infer(case.images, case.image_sizes))
    one, other = found
    assert one.num_detections.all()
    for name in OUTPUT_NAMES:  # group norms round otherwise
        close = {"rtol": 1e-5, "atol": 1e-3 if "boxes" in name else 1e-6}
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), **close)


def test_the_exported_file_has_the_form_for_cpus(exported: Exported) -> None:
    model, manifest = load_deployed(exported.model)
    assert for_processor(model, manifest.thresholds, "cpu") == model
    assert for_processor(model, manifest.thresholds, "gpu") != model


@pytest.mark.parametrize("canvas", [None, (320, 416)], ids=list(BEFORE))
@pytest.mark.parametrize("name", ["atss_r50_fpn_1x", "retinanet_r50_fpn_1x"])
def test_few_nodes_follow_the_network_on_a_gpu(name: str, canvas: tuple[int, int] | None, tmp_path: Path) -> None:
    """At most 300, and a third of the chain that they had: each node that isn't fused is a launch."""
    model = narrowed(RECIPES[name]().model)
    loaded = saved(model, Thresholds(candidates_per_level=100), Preprocess(320, 416), tmp_path / "best.pt")
    content = checkpoint_to_graph(loaded, input_shapes(loaded.config.preprocess, 4, canvas), "gpu")
    graph, _ = parse_deployed(content, Path(name))
    nodes, chain = size_behind_network(graph)
    assert nodes <= 300
    assert chain <= BEFORE["every canvas" if canvas is None else "one canvas"][1] / 3
    operators = {node.op_type for node in graph.graph.node}
    if canvas is not None:
        assert not operators & {"Shape", "Range", "ConstantOfShape"}, "arithmetic on shapes in a graph of one canvas"


def test_the_count_is_of_dependent_nodes() -> None:
    """A graph counted by hand: two nodes behind a dense map need each other, a third stands beside them."""
    nodes = [
        onnx.helper.make_node("Relu", ["images"], ["class_logits_0"]),
        onnx.helper.make_node("Sigmoid", ["class_logits_0"], ["a"]),
        onnx.helper.make_node("Exp", ["image_sizes"], ["b"]),
        onnx.helper.make_node("Mul", ["a", "b"], ["c"]),
    ]
    named = {
        name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2])
        for name in ("images", "image_sizes", "class_logits_0", "c")
    }
    inputs, inner = [named["images"], named["image_sizes"]], [named["class_logits_0"]]
    graph = onnx.helper.make_graph(nodes, "test", inputs, [named["c"]], value_info=inner)
    assert tuple(size_behind_network(onnx.helper.make_model(graph))) == (3, 2)
