"""From a checkpoint to the ONNX graph that is deployed: assemble the module, trace it, add the manifest.

The module is `DeployableGraph` (`deployable.py`); the batches and canvases come from `shapes.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import metadata

import onnx
import torch

from runtime.manifest import METADATA_KEY, InputShapes, to_json
from train.build import build_postprocess
from train.checkpoint import LoadedDetector
from train.trainer.evaluation import detector_manifest

from ..onnx_model.file import INPUT_NAMES, graph_sha256, keep_outputs, strip_debug_info
from ..onnx_model.forms import for_processor
from ..onnx_model.processor import Processor
from ..onnx_model.simplify import simplify
from .deployable import Candidates, DeployableGraph, dense_names, graph_canvases
from .shapes import round_up
from .translation import translate

EXAMPLE_HW = (192, 256)  # px, the canvas that is traced; its sides differ, or the exporter would take one for the other


def checkpoint_to_graph(loaded: LoadedDetector, shapes: InputShapes, processor: Processor = "cpu") -> bytes:
    """A detector as the bytes of an ONNX file, with its manifest in the metadata; the same bytes each time.

    It takes the batches and canvases of `shapes` (`graph.shapes.input_shapes`), and has the form for `processor`; the
    other form is made of it without torch (`onnx_model/forms.py`).
    Raises UserError where TensorRT couldn't rank `candidates_per_level`.
    """
    settings = loaded.config
    canvases = graph_canvases(shapes, settings.model.pyramid.levels, settings.model.anchors, settings.thresholds)
    graph = DeployableGraph(loaded.detector, build_postprocess(settings.model, settings.thresholds), canvases)
    dense = dense_names(settings.model.pyramid.levels, settings.model.head.has_centerness)
    model = trace(graph, shapes, dense, settings.preprocess.size_divisor)
    model = for_processor(model, settings.thresholds, processor)
    manifest = dataclasses.replace(
        detector_manifest(settings, loaded.classes, shapes),
        checkpoint_sha256=loaded.sha256,
        graph_sha256=graph_sha256(model),
        libraries={name: metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
        ap=loaded.ap if loaded.ap is not None and loaded.ap >= 0 else None,  # −1: nothing to be found
    )
    model.metadata_props.add(key=METADATA_KEY, value=to_json(manifest))
    return model.SerializeToString(deterministic=True)


def trace(graph: DeployableGraph, shapes: InputShapes, dense: list[str], divisor: int) -> onnx.ModelProto:
    """The graph as ONNX. Its outputs are the candidates; the dense maps are inner values with the names `dense`.

    Dynamic sides are multiples of `divisor`, and so are the bounds of `shapes`.
    """
    height, width = _example_sides(shapes, divisor)
    batch = min(2, shapes.batch_max)
    images = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    image_sizes = torch.tensor([[height, width]] * batch, dtype=torch.int32)
    dynamic: dict[int, object] = {}
    if shapes.batch_min < shapes.batch_max:
        dynamic[0] = torch.export.Dim("batch", min=shapes.batch_min, max=shapes.batch_max)
    for axis, name in ((1, "height"), (2, "width")):
        low, high = shapes.ranges[name]
        if low < high:
            dynamic[axis] = divisor * torch.export.Dim(f"{name}_{divisor}", min=low // divisor, max=high // divisor)
    sizes_dynamic = {0: dynamic[0]} if 0 in dynamic else {}
    with quiet_exporter():
        program = torch.export.export(
            graph.eval(), (images, image_sizes), dynamic_shapes=(dynamic, sizes_dynamic), strict=False
        )
        model = translate(program, INPUT_NAMES, [*Candidates._fields, *dense])
    keep_outputs(model, Candidates._fields)
    strip_debug_info(model)
    simplify(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _example_sides(shapes: InputShapes, divisor: int) -> tuple[int, int]:
    height, width = (round_up(side, divisor) for side in EXAMPLE_HW)
    width += divisor * (height == width)
    return shapes.nearest_canvas((height, width))


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter, which prints its progress and warns about its own internals. Errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
