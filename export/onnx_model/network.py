"""Deployed ONNX files: reading them, cutting the network out, and replacing it before the untouched postprocessing.

The network is everything that the dense maps depend on. It reads `images` alone and outputs the dense maps under their
names. The postprocessing (scores, ranking, boxes, NMS) is float32 in every file and is never quantized.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto

from runtime.command_names import CHECKPOINT_SUFFIXES, TO_ONNX
from runtime.errors import UserError, describe_os_error
from runtime.manifest import METADATA_KEY, Manifest, from_json

from .file import INPUT_NAMES, graph_sha256

DENSE = re.compile(r"(class_logits|box_regression|centerness)_\d+")
OPSETS = (21, 22)  # of an export, and of a bfloat16 file
_EXPORT = f"export the checkpoint again: {TO_ONNX} CHECKPOINT"


class ModelError(UserError):
    """An ONNX file that this toolkit didn't write, that was changed since, or that can't be used as asked."""


def load_deployed(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """Read a file that the export wrote and that is unchanged since. Raises ModelError, ManifestError."""
    return parse_deployed(read_deployed(path), path)


def read_deployed(path: Path) -> bytes:
    """The bytes of a file, for `parse_deployed`. Raises ModelError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {describe_os_error(error)}; expected an ONNX file of this toolkit") from error


def parse_deployed(content: bytes, path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """`load_deployed` for bytes that were read before; `path` is the name of their file in messages."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        if path.suffix.lower() in CHECKPOINT_SUFFIXES:
            raise ModelError(f"{path}: a checkpoint must be exported first: {TO_ONNX} {path}") from error
        raise ModelError(f"{path}: not an ONNX file, or cut short ({error}); {_EXPORT}") from error
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise ModelError(f"{path}: not a file that this toolkit exported (no manifest); {_EXPORT}")
    if outside := [value.name for value in model.graph.initializer if value.external_data]:
        raise ModelError(
            f"{path}: {len(outside)} weights lie in other files ({outside[0]}, …); this toolkit writes one file with "
            f"everything in it, so {_EXPORT}"
        )
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") not in OPSETS:
        raise ModelError(
            f"{path}: opset {opsets.get('', 'missing')}, expected {' or '.join(map(str, OPSETS))}; {_EXPORT}"
        )
    manifest = from_json(text, str(path))
    if manifest.graph_sha256 != graph_sha256(model):
        raise ModelError(
            f"{path}: the graph was changed after its export (its SHA-256 is not the manifest's); {_EXPORT}"
        )
    _check_graph(model, path)
    if not dense_map_names(model):
        raise ModelError(
            f"{path}: the dense maps (class_logits_0, …) are not in the graph under their names; {_EXPORT}"
        )
    return model, manifest


def _check_graph(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError where the graph breaks a rule of ONNX, such as a constant of another shape than it says."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        told = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: the graph is not valid ONNX ({told}); {_EXPORT}") from error


def dense_map_names(model: onnx.ModelProto) -> list[str]:
    """Names of the network's outputs inside the graph: class logits by level, box codes, centerness if any."""
    known = [value.name for value in (*model.graph.value_info, *model.graph.output) if DENSE.fullmatch(value.name)]
    kinds = ("class_logits", "box_regression", "centerness")
    return sorted(known, key=lambda name: (kinds.index(name.rpartition("_")[0]), int(name.rpartition("_")[2])))


def cut_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network as a separate model: `images` → the dense maps, in the order of `dense_map_names`."""
    names = dense_map_names(model)
    nodes = ancestors(model.graph.node, names)
    inner = {value.name: value for value in model.graph.value_info}
    made = {name for node in nodes for name in node.output}
    network = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "network",
            [value for value in model.graph.input if value.name == INPUT_NAMES[0]],
            [inner[name] for name in names],
            _constants_read_by(model.graph.initializer, nodes),
            value_info=[value for name, value in inner.items() if name in made and name not in names],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    return network


def cut_postprocessing(model: onnx.ModelProto) -> onnx.ModelProto:
    """The postprocessing up to NMS as a separate model: dense maps and the graph's inputs → `candidate_*`."""
    outputs = [value for value in model.graph.output if value.name.startswith("candidate_")]
    nodes = ancestors(postprocessing_nodes(model), (value.name for value in outputs))
    read = {name for node in nodes for name in node.input}
    names = (*INPUT_NAMES, *dense_map_names(model))
    inputs = [value for value in (*model.graph.input, *model.graph.value_info) if value.name in names]
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "postprocessing",
            [value for value in inputs if value.name in read],
            outputs,
            _constants_read_by(model.graph.initializer, nodes),
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def postprocessing_nodes(model: onnx.ModelProto) -> list[NodeProto]:
    """The nodes of postprocessing and NMS: those that the dense maps don't depend on."""
    network = {node.output[0] for node in ancestors(model.graph.node, dense_map_names(model))}
    return [node for node in model.graph.node if node.output[0] not in network]


def replace_network(model: onnx.ModelProto, network: onnx.ModelProto) -> onnx.ModelProto:
    """The model with `network` in place of its own network, without metadata.

    Raises ValueError where the postprocessing reads a value that the new network lacks, and onnx's errors where the
    result isn't a valid model.
    """
    rest = postprocessing_nodes(model)
    made = {name for node in (*network.graph.node, *rest) for name in node.output}
    # Network and postprocessing may share a constant. A new network either keeps it as it was or gives it a new name.
    constants = {
        value.name: value for value in (*_constants_read_by(model.graph.initializer, rest), *network.graph.initializer)
    }
    given = made | constants.keys() | {value.name for value in model.graph.input}
    if missing := [name for node in rest for name in node.input if name and name not in given]:
        raise ValueError(f"the new network lacks {missing[0]}, which the postprocessing reads")
    inner = {value.name: value for value in model.graph.value_info}
    after = {name for node in rest for name in node.output}
    joined = onnx.helper.make_model(
        onnx.helper.make_graph(
            [*network.graph.node, *rest],
            model.graph.name,
            model.graph.input,
            model.graph.output,
            list(constants.values()),
            value_info=[
                *network.graph.value_info,
                *network.graph.output,
                *(value for name, value in inner.items() if name in after),
            ],
        ),
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        opset_imports=network.opset_import,
        ir_version=max(model.ir_version, network.ir_version),
    )
    onnx.checker.check_model(joined, full_check=True)
    return joined


def ancestors(nodes: Iterable[NodeProto], names: Iterable[str], until: Collection[str] = ()) -> list[NodeProto]:
    """The nodes that the values `names` depend on, in graph order. The walk stops at operators in `until`."""
    nodes = list(nodes)
    producer = {name: node for node in nodes for name in node.output}
    found: set[str] = set()
    pending = list(names)
    while pending:
        node = producer.get(pending.pop())
        if node is not None and node.output[0] not in found:
            found.add(node.output[0])
            if node.op_type not in until:
                pending += node.input
    return [node for node in nodes if node.output[0] in found]


def _constants_read_by(constants: Iterable[onnx.TensorProto], nodes: Iterable[NodeProto]) -> list[onnx.TensorProto]:
    wanted = {name for node in nodes for name in node.input}
    return [value for value in constants if value.name in wanted]
