"""The network inside a deployed ONNX file: cut out, worked on, and put back before its untouched postprocessing.

The network is what the dense maps depend on; it reads `images` alone and ends in those maps, under their names. What
comes after them (scores, ranking, boxes, NMS) is float32 in every file and never passes through a quantizer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto

from runtime.command_names import TO_ONNX
from runtime.errors import UserError, describe_os_error
from runtime.manifest import METADATA_KEY, Manifest, from_json

from .file import INPUT_NAMES, graph_sha256

DENSE = re.compile(r"(class_logits|box_regression|centerness)_\d+")
OPSETS = (21, 22)  # what export/to_onnx.py writes, and what bfloat16 needs
_EXPORT = f"export the checkpoint again: {TO_ONNX} CHECKPOINT"


class ModelError(UserError):
    """An ONNX file that isn't one of this toolkit's, or not the one that is needed."""


def load_deployed(path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """A file that export/to_onnx.py or export/quantize.py wrote, unchanged since. Raises ModelError, ManifestError."""
    return parse_deployed(read_deployed(path), path)


def read_deployed(path: Path) -> bytes:
    """The bytes of a file to parse. Raises ModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {describe_os_error(error)}; expected an ONNX file of this toolkit") from error


def parse_deployed(content: bytes, path: Path) -> tuple[onnx.ModelProto, Manifest]:
    """`load_deployed` of bytes that were read already; `path` names them in messages."""
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
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
    if not dense_map_names(model):
        raise ModelError(
            f"{path}: the dense maps (class_logits_0, …) are not in the graph under their names; {_EXPORT}"
        )
    return model, manifest


def dense_map_names(model: onnx.ModelProto) -> list[str]:
    """Names of the network's outputs inside the graph: class logits by level, box codes, centerness if any."""
    known = [value.name for value in (*model.graph.value_info, *model.graph.output) if DENSE.fullmatch(value.name)]
    kinds = ("class_logits", "box_regression", "centerness")
    return sorted(known, key=lambda name: (kinds.index(name.rpartition("_")[0]), int(name.rpartition("_")[2])))


def cut_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network as a model of its own: `images` → the dense maps, in `dense_maps`' order."""
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
    """What makes candidates of the dense maps: the maps and the graph's own inputs → `candidate_*`."""
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
    """The nodes that the dense maps don't depend on: postprocessing and NMS."""
    network = {node.output[0] for node in ancestors(model.graph.node, dense_map_names(model))}
    return [node for node in model.graph.node if node.output[0] not in network]


def replace_network(model: onnx.ModelProto, network: onnx.ModelProto) -> onnx.ModelProto:
    """The model with this network in place of its own, without metadata.

    Raises onnx's errors where the result isn't valid, and ValueError where postprocessing needs what the new network
    doesn't have.
    """
    rest = postprocessing_nodes(model)
    made = {name for node in (*network.graph.node, *rest) for name in node.output}
    # A limit of a Clip, say, may serve both; a new network leaves a constant as it was or names it anew.
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
    """The nodes that these values depend on, in their order; what feeds a node of a kind in `until` is left out."""
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
