"""ONNX files in both CPU backends and in the conversion: damaged bytes, manifests that lie, and changed graphs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from runtime.detector import Detector
from runtime.manifest import METADATA_KEY

from ..mutation import as_json, changed, damaged
from ..target import Target, require
from .records import check_manifest


@st.composite
def _inputs(draw: DrawFn, path: Path) -> dict[str, bytes]:
    import onnx

    data = path.read_bytes()
    if draw(st.integers(0, 2)) == 2:
        return {"m.onnx": draw(damaged(data))}
    model = onnx.load_model_from_string(data)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    if not draw(st.booleans()):
        text = as_json(draw(changed(json.loads(entry.value), 2)))
        entry.value = text.encode("utf-8", "replace").decode()
        return {"m.onnx": model.SerializeToString()}
    draw(_graph(model))
    if draw(st.booleans()):
        _restamp(model, entry)
    return {"m.onnx": model.SerializeToString()}


def _restamp(model: Any, entry: Any) -> None:
    """Make the manifest fit the changed graph, as someone who edits a file would."""
    from export.onnx_model.file import graph_sha256

    content = json.loads(entry.value)
    entry.value = json.dumps(content | {"graph_sha256": graph_sha256(model)})


@st.composite
def _graph(draw: DrawFn, model: Any) -> None:
    """Change a graph in place: a node, an attribute, a name, a constant, an input or an output."""
    graph = model.graph
    match draw(st.sampled_from(("node", "twice", "kind", "input", "constant", "shape", "outputs", "opset", "nan"))):
        case "node" if graph.node:
            del graph.node[draw(st.integers(0, len(graph.node) - 1))]
        case "twice" if graph.node:
            graph.node.append(graph.node[draw(st.integers(0, len(graph.node) - 1))])
        case "kind" if graph.node:
            node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
            node.op_type = draw(st.sampled_from(("Relu", "Add", "NoSuchOperator", "", "Loop", "If", "Reshape", "Cast")))
        case "input" if graph.node:
            node = graph.node[draw(st.integers(0, len(graph.node) - 1))]
            if node.input:
                node.input[0] = draw(st.sampled_from(("images", "image_sizes", "", "no_such", node.output[0])))
        case "constant" if graph.initializer:
            tensor = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
            tensor.raw_data = draw(damaged(tensor.raw_data or b"\0"))
        case "shape" if graph.initializer:
            tensor = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
            tensor.dims.append(draw(st.sampled_from((0, 1, 2, -1, 2**31, 2**62))))
        case "outputs" if graph.output:
            value = graph.output[draw(st.integers(0, len(graph.output) - 1))]
            value.name = draw(st.sampled_from(("x", "images", "", "detection_boxes", "\x1b[31m")))
        case "opset":
            model.opset_import[0].version = draw(st.sampled_from((0, 1, 7, 13, 22, 25, 99, 2**40)))
        case _:
            weights = [tensor for tensor in graph.initializer if tensor.data_type == 1 and tensor.raw_data]
            if weights:
                tensor = draw(st.sampled_from(weights))
                number = np.float32(draw(st.sampled_from((np.nan, np.inf, -np.inf)))).tobytes()
                tensor.raw_data = number + tensor.raw_data[4:]


@functools.cache
def _wanted(model: Path, backend: str) -> Any:
    with Detector(model, backend=backend, threads=1) as detector:
        return detector.detect([_image()])[0]


def _image() -> np.ndarray:
    image = np.full((60, 80, 3), 20, np.uint8)
    image[20:40, 10:50] = (250, 0, 0)
    return image


def _same_graph(path: Path, whole: Path) -> bool:
    """Whether two files hold the same graph, to the last byte."""
    import onnx

    from export.onnx_model.file import graph_sha256

    return graph_sha256(onnx.load(path)) == graph_sha256(onnx.load(whole))


def _opened(name: str, backend: str) -> Callable[[Path, Path], str]:
    def read(folder: Path, seeds: Path) -> str:
        path, whole = folder / "m.onnx", seeds / name
        wanted = _wanted(whole, backend)
        with Detector(path, backend=backend, threads=1) as detector:
            manifest = detector.manifest
            check_manifest(manifest)
            (found,) = detector.detect([_image()])
        require(bool(np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()), "not finite")
        require(bool((found.classes >= 0).all() and (found.classes < len(manifest.classes)).all()), "unknown classes")
        require(bool((found.scores >= 0).all() and (found.scores <= 1).all()), "scores out of 0–1")
        import onnx

        from export.onnx_model.file import graph_sha256

        stamped = manifest.graph_sha256 == graph_sha256(onnx.load(path))
        require(stamped, "a graph that is not the one of its manifest was opened")
        if _same_graph(path, whole) and manifest.thresholds == _manifest(whole).thresholds:
            same = manifest.preprocess == _manifest(whole).preprocess
            require(not same or np.array_equal(found.boxes, wanted.boxes), "other boxes from the same graph")
        return f"{len(found)} detections"

    return read


def _manifest(path: Path) -> Any:
    import onnx

    from runtime.manifest import from_json

    text = next(entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA_KEY)
    return from_json(text, "seed")


def _quantized(folder: Path, seeds: Path) -> str:
    """To fp16, up to the verification: what is damaged is found when the file is read."""
    from export.quantization.convert import convert_model, load_float32
    from export.quantization.scheme import Scheme

    source = load_float32(folder / "m.onnx")
    check_manifest(source.manifest)
    require(_same_graph(folder / "m.onnx", seeds / "model.onnx") or _is_restamped(folder / "m.onnx"), "changed graph")
    converted = convert_model(source.model, source.manifest, Scheme("fp16"), None)
    return f"{len(converted.graph.node)} nodes"


def _is_restamped(path: Path) -> bool:
    import onnx

    from export.onnx_model.file import graph_sha256

    return bool(_manifest(path).graph_sha256 == graph_sha256(onnx.load(path)))


TARGETS = {
    # ONNX Runtime prints that it was asked for more memory than there is, whatever its session's log level.
    "ONNX in ONNX Runtime": Target(
        lambda seeds: _inputs(seeds / "red.onnx"), _opened("red.onnx", "cpu"), 1.5, 40, may_print=True
    ),
    "ONNX in OpenVINO": Target(lambda seeds: _inputs(seeds / "red.onnx"), _opened("red.onnx", "openvino"), 1.5, 40),
    "a detector in ONNX Runtime": Target(
        lambda seeds: _inputs(seeds / "model.onnx"), _opened("model.onnx", "cpu"), 0.6, 15
    ),
    "a detector in OpenVINO": Target(
        lambda seeds: _inputs(seeds / "model.onnx"), _opened("model.onnx", "openvino"), 0.2, 6
    ),
    "conversion of ONNX": Target(lambda seeds: _inputs(seeds / "model.onnx"), _quantized, 0.4, 10),
}
