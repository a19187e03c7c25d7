"""Small operations on ONNX models: choosing outputs, removing what the exporter left, hashing."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from runtime.manifest import METADATA_KEY, from_json, to_json

INPUT_NAMES = ("images", "image_sizes")  # of the deployable graph


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make `names` the model's only outputs, in place. The other outputs become inner values and keep their names."""
    kept = [value for value in model.graph.output if value.name in names]
    inner = [value for value in model.graph.output if value.name not in names]
    assert [value.name for value in kept] == list(names)
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.value_info.extend(inner)  # so that their types stay known


def expose_values(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto | None:
    """A copy of the model that also outputs the inner values `names`; None where the model lacks one of them."""
    inner = {value.name: value for value in model.graph.value_info}
    if not inner.keys() >= set(names):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(inner[name] for name in names)
    return copy


def strip_debug_info(model: onnx.ModelProto) -> None:
    """Remove the exporter's debugging notes in place: they hold stack traces with paths of the exporting machine."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]


def graph_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 of a model without its metadata, because the manifest in the metadata states this hash."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def state_hash(model: onnx.ModelProto) -> None:
    """Make the manifest in the metadata state the hash of the graph as it is now, in place."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            manifest = from_json(entry.value, "the model")
            entry.value = to_json(dataclasses.replace(manifest, graph_sha256=graph_sha256(model)))


def shielded_bias(name: str, bias: np.ndarray) -> tuple[NodeProto, list[TensorProto]]:
    """A bias [O] as 32-bit integers: the DequantizeLinear that turns them into floats named `name`, and its constants.

    Exact to 2⁻³¹ of the largest number. It keeps a convolution's weights in float: between a DequantizeLinear and a
    QuantizeLinear, ONNX Runtime (1.32) rounds float weights to 8 bits with one scale for all channels, except where
    the convolution's bias is not a constant.
    """
    scale = np.float32(max(float(np.abs(bias).max(initial=0)), np.finfo(np.float32).tiny * 2.0**31) / 2.0**30)
    steps = np.rint(bias.astype(np.float64) / float(scale)).astype(np.int32)
    constants = {f"{name}_steps": steps, f"{name}_step": scale, f"{name}_zero": np.zeros((), np.int32)}
    node = onnx.helper.make_node("DequantizeLinear", list(constants), [name], name)
    return node, [numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items()]
